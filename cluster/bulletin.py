"""What one instance tells of its caches: changes gathered to numbered batches, and snapshots.

Hears the caches through their watchers, on the event loop, and only takes notes there. Knows keys;
does not know who reads the batches, nor what a directory makes of them.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import groupby

from triptych.cache.watch import TierWatchers, Watchers
from triptych.core.catalog import KEY_BYTES, CacheBatch, Change, Tier
from triptych.core.ids import BlockId, ContentHash

MAX_KEYS = 262_144
"""Keys of one kind and tier that are told of (4 MiB a snapshot); of more nobody else knows, which
costs misses."""
MAX_PENDING = 65_536
"""Changes that wait for the next flush; a snapshot takes the place of more."""

Note = tuple[str, Tier, bool, bytes]


class Bulletin:
    """Changes of all caches of an instance. ``sinks`` are given every batch; they must not block.

    ``flush_s`` is how long changes are gathered.
    """

    def __init__(self, flush_s: float) -> None:
        self.sinks: list[Callable[[CacheBatch], None]] = []
        self._flush_s = flush_s
        self._there: dict[tuple[str, Tier], dict[bytes, None]] = {}
        """In order of storing, so the parents of a block stand before it."""
        self._notes: list[Note] = []
        self._num_batches = 0
        self._is_flooded = False
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, kind: str, tier: Tier, watchers: Watchers) -> None:
        """Tell of everything that ``watchers`` hear: of ``kv`` or ``item``, on that tier."""
        self._there[kind, tier] = {}
        watchers.add(_Ear(partial(self._note, kind, tier)))

    def watch_tiers(
        self, kind: str, watchers: TierWatchers, there: Mapping[Tier, Sequence[ContentHash]]
    ) -> None:
        """The same of the tiers below a cache, which hold what is ``there`` already."""
        for tier, keys in there.items():
            self._there[kind, tier] = {}
            for key in keys:
                self._note(kind, tier, key, True)
        watchers.add(_TierEar(lambda tier, key, is_stored: self._note(kind, tier, key, is_stored)))

    def snapshot(self) -> CacheBatch:
        """All there is now. It may contain more than its number says; hearing a change twice does
        no harm."""
        changes = (
            Change(kind, tier, True, tuple(keys)) for (kind, tier), keys in self._there.items()
        )
        return CacheBatch(self._num_batches, True, tuple(changes))

    def close(self) -> None:
        """Tell nothing any more."""
        self.sinks.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _note(self, kind: str, tier: Tier, content: ContentHash, is_stored: bool) -> None:
        key, there = content[:KEY_BYTES], self._there[kind, tier]
        if is_stored:
            if len(there) >= MAX_KEYS:
                return
            there[key] = None
        else:
            there.pop(key, None)
        if len(self._notes) < MAX_PENDING:
            self._notes.append((kind, tier, is_stored, key))
        else:
            self._is_flooded = True
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._flush_s, self._flush)

    def _flush(self) -> None:
        self._timer = None
        notes, self._notes = self._notes, []
        self._num_batches += 1
        if self._is_flooded:
            self._is_flooded, batch = False, self.snapshot()
        else:
            batch = CacheBatch(self._num_batches, False, _changes(notes))
        for sink in self.sinks:
            sink(batch)


def _changes(notes: Iterable[Note]) -> tuple[Change, ...]:
    """Notes of one kind, tier and direction that stand together become one change."""
    return tuple(
        Change(kind, tier, is_stored, tuple(key for *_, key in group))
        for (kind, tier, is_stored), group in groupby(notes, lambda note: note[:3])
    )


class _Ear:
    """A watcher of one cache."""

    def __init__(self, note: Callable[[ContentHash, bool], None]) -> None:
        self._note = note

    def stored(self, key: ContentHash, _blocks: Sequence[BlockId]) -> None:
        self._note(key, True)

    def evicted(self, key: ContentHash, _blocks: Sequence[BlockId]) -> None:
        self._note(key, False)


class _TierEar:
    """A watcher of the tiers below one cache."""

    def __init__(self, note: Callable[[Tier, ContentHash, bool], None]) -> None:
        self._note = note

    def tier_stored(self, tier: Tier, key: ContentHash) -> None:
        self._note(tier, key, True)

    def tier_evicted(self, tier: Tier, key: ContentHash) -> None:
        self._note(tier, key, False)
