"""Tiers as a source of prefixes: which leading blocks of a sequence lie below the store.

Implements ``kvtransfer.prefixes.Source`` and ``Found``. Knows keys, no bytes.
"""

from collections.abc import Sequence

from triptych.cache.kv import KvCache, KvTable
from triptych.core.handoff import LanguageJob
from triptych.core.ids import BlockId, ContentHash
from triptych.offload.mover import Mover


class TierPrefix:
    """Leading blocks of one sequence by key, those behind the hit in a tier."""

    def __init__(self, mover: Mover, keys: Sequence[ContentHash], block_size: int) -> None:
        self._mover = mover
        self._keys = keys
        self.num_tokens = len(keys) * block_size

    async def bring(self, blocks: Sequence[BlockId], first: int, _deadline_s: float) -> int:
        """Fill ``blocks[first:]`` in order, up to the first that is gone; how many of ``blocks``
        are right then."""
        wanted = zip(self._keys[first : len(blocks)], blocks[first:], strict=True)
        return first + await self._mover.fill([(key, (block,)) for key, block in wanted])


class TierPrefixes:
    """The tiers below one KV cache."""

    def __init__(self, cache: KvCache, mover: Mover) -> None:
        self._cache = cache
        self._mover = mover

    def find(self, _job: LanguageJob, table: KvTable) -> TierPrefix | None:
        """What lies in the tiers behind the sequence's hit."""
        keys, first = self._keys(table), table.hit_tokens // table.block_size
        count = self._mover.covered(keys[first:])
        return TierPrefix(self._mover, keys[: first + count], table.block_size) if count else None

    def foresee(self, _job: LanguageJob, table: KvTable) -> None:
        """A sequence waits: what the disk has of it goes to the host meanwhile."""
        keys = self._keys(table)
        hit = self._cache.match(table, len(table.tokens) - 1)
        keys = keys[hit // table.block_size :]
        self._mover.foresee(keys[: self._mover.covered(keys)])

    def _keys(self, table: KvTable) -> list[ContentHash]:
        """Keys of all blocks that may be used: the last token is always computed."""
        return self._cache.keys(table, len(table.tokens) - 1)
