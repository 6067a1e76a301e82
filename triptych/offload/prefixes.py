"""Tiers as a source of prefixes: which leading blocks of a sequence lie below the store.

Implements ``kvtransfer.prefixes.PrefixSource``. Knows keys, no bytes.
"""

import logging
from collections.abc import Sequence
from typing import Protocol

from triptych.cache.kv import KvCache, KvTable
from triptych.core.errors import TriptychError
from triptych.core.handoff import LanguageJob
from triptych.core.ids import BlockId, ContentHash, JobId
from triptych.offload.mover import Mover

log = logging.getLogger(__name__)


class Place(Protocol):
    """What is awaited (``kvtransfer.prefixes.Place``): tokens of full blocks."""

    @property
    def blocks(self) -> Sequence[BlockId]:
        """Blocks of the sequence."""
        ...

    @property
    def start(self) -> int:
        """The first token that is awaited."""
        ...

    @property
    def end(self) -> int:
        """Behind the last."""
        ...


class TierPrefixes:
    """The tiers below one KV cache."""

    def __init__(self, cache: KvCache, mover: Mover) -> None:
        self._cache = cache
        self._mover = mover
        self._found: dict[JobId, Sequence[ContentHash]] = {}
        """Keys of the leading blocks that are in the tree or in a tier."""

    def num_tokens(self, job: LanguageJob, table: KvTable) -> int:
        """The sequence's hit and what lies in the tiers right behind it, full blocks."""
        keys, first = self._keys(table), table.hit_tokens // table.block_size
        count = first + self._mover.covered(keys[first:])
        if count > first:
            self._found[job.header.id] = keys[:count]
        else:
            self.forget(job.header.id)
        return count * table.block_size

    def foresee(self, _job: LanguageJob, table: KvTable) -> None:
        """A sequence waits: what the disk has of it goes to the host meanwhile."""
        keys = self._keys(table)
        hit = self._cache.match(table, len(table.tokens) - 1)
        keys = keys[hit // table.block_size :]
        self._mover.foresee(keys[: self._mover.covered(keys)])

    def forget(self, job: JobId) -> None:
        """Nothing will be brought for the job."""
        self._found.pop(job, None)

    async def bring(self, job: LanguageJob, place: Place, _deadline_s: float) -> int:
        """Fill blocks behind ``place.start`` in order, up to the first that is gone; up to which
        token all is there. When this has returned or was cancelled, nobody writes to them."""
        size, start, end = self._cache.block_size, place.start, place.end
        keys = self._found.pop(job.header.id, ())[start // size : end // size]
        wanted = zip(keys, place.blocks[start // size :], strict=False)
        try:
            count = await self._mover.fill([(key, (block,)) for key, block in wanted])
        except TriptychError as error:
            log.info("%s: a prefix was not brought: %s", job.header.id, error)
            return start
        return start + count * size

    def _keys(self, table: KvTable) -> list[ContentHash]:
        """Keys of all blocks that may be used: the last token is always computed."""
        return self._cache.keys(table, len(table.tokens) - 1)
