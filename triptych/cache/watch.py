"""Who hears what becomes findable in a cache or a tier, and what is forgotten.

Knows keys and blocks. Does not know what anybody does with them.
"""

from typing import Protocol

from triptych.core.catalog import Tier
from triptych.core.ids import BlockId, ContentHash


class Watcher(Protocol):
    """Hears of a cache's contents while they change. Must not call the cache back."""

    def stored(self, key: ContentHash, blocks: tuple[BlockId, ...]) -> None:
        """``key`` is findable from now on; its bytes are in ``blocks`` and do not change."""
        ...

    def evicted(self, key: ContentHash, blocks: tuple[BlockId, ...]) -> None:
        """``key`` is not findable any more; ``blocks`` may be written as soon as this returns."""
        ...


class Watchers:
    """The watchers of one cache, told in the order of joining."""

    def __init__(self) -> None:
        self._all: list[Watcher] = []

    def add(self, watcher: Watcher) -> None:
        """Tell ``watcher`` of every change from now on."""
        self._all.append(watcher)

    def stored(self, key: ContentHash, *blocks: BlockId) -> None:
        """See ``Watcher``."""
        for watcher in self._all:
            watcher.stored(key, blocks)

    def evicted(self, key: ContentHash, *blocks: BlockId) -> None:
        """See ``Watcher``."""
        for watcher in self._all:
            watcher.evicted(key, blocks)


class TierWatcher(Protocol):
    """Hears of the contents of the tiers below a cache, on the event loop."""

    def tier_stored(self, tier: Tier, key: ContentHash) -> None:
        """``key`` can be brought from ``tier`` from now on."""
        ...

    def tier_evicted(self, tier: Tier, key: ContentHash) -> None:
        """``key`` is in ``tier`` no longer."""
        ...


class TierWatchers:
    """The watchers of one cache's tiers, told in the order of joining."""

    def __init__(self) -> None:
        self._all: list[TierWatcher] = []

    def add(self, watcher: TierWatcher) -> None:
        """Tell ``watcher`` of every change from now on."""
        self._all.append(watcher)

    def changed(self, tier: Tier, key: ContentHash, is_stored: bool) -> None:
        """See ``TierWatcher``."""
        for watcher in self._all:
            if is_stored:
                watcher.tier_stored(tier, key)
            else:
                watcher.tier_evicted(tier, key)
