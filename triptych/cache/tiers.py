"""What lies in which slots of the tiers below a block store, host memory and disk.

Of the host, what the device still holds leaves first, then what was unused for longest; such an
entry is named for demotion in time. Of the disk, what was unused for longest. Keys and integers
only: no bytes, no files, and no threads; whoever owns an index calls it under one lock.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from triptych.cache.shelf import Held, HeldState, Shelf, Worth
from triptych.core.catalog import Tier
from triptych.core.errors import InvariantBroken
from triptych.core.ids import ContentHash

RESERVE = 8
"""One in so many host slots, those that are given out next, hold nothing that is only there."""
MAX_RESERVE = 1024
"""No more slots than this are kept so."""

DEMOTIONS = 32
"""Entries that it pays to choose for demotion together."""

OnChange = Callable[[Tier, ContentHash, bool], None]
"""Hears ``(tier, key, is_stored)`` of what becomes findable and what is forgotten."""


def _ignore(_tier: Tier, _key: ContentHash, _is_stored: bool) -> None:
    """Nobody wants to hear."""


class TierIndex:
    """Both tiers of one block store. Every change is all or nothing.

    Args:
        host_slots: slots of one block each in host memory, at least 1.
        disk_slots: the same on the disk; 0: there is none.
        adopted: entries that lie on the disk since an earlier life, unused for longest first.
        on_change: must not call back. Adopted entries are not told.
    """

    def __init__(
        self,
        host_slots: int,
        disk_slots: int = 0,
        adopted: Mapping[ContentHash, Sequence[int]] | None = None,
        on_change: OnChange = _ignore,
    ) -> None:
        self._host = Shelf(Tier.HOST, host_slots)
        self._disk = Shelf(Tier.DISK, disk_slots, adopted)
        self._shelves = {Tier.HOST: self._host, Tier.DISK: self._disk}
        # A disk with less room than that would be rewritten for ever, to keep it.
        self._reserve = min(-(-host_slots // RESERVE), disk_slots // 2, MAX_RESERVE)
        self._num_used = self._reserve
        """Slots that may have left such room since there was enough of it."""
        self._on_change = on_change
        self.num_lost = 0
        """Entries that were in no other tier when they were evicted, since the start."""

    def find(self, key: ContentHash) -> Tier | None:
        """The fastest tier that can give ``key`` now. Pure."""
        for tier, shelf in self._shelves.items():
            held = shelf.held.get(key)
            if held is not None and held.is_ready:
                return tier
        return None

    def covered(self, keys: Iterable[ContentHash]) -> int:
        """How many leading keys can be given now. Pure."""
        count = 0
        for key in keys:
            if self.find(key) is None:
                break
            count += 1
        return count

    def has(self, tier: Tier, key: ContentHash) -> bool:
        """Whether ``key`` is in ``tier``, or being written there. Pure."""
        return key in self._shelves[tier].held

    def keys(self, tier: Tier) -> Iterator[ContentHash]:
        """What can be found in ``tier`` now, for a snapshot. Pure."""
        return (key for key, held in self._shelves[tier].held.items() if held.is_ready)

    def begin(
        self, tier: Tier, key: ContentHash, count: int, *, is_on_device: bool = False
    ) -> Held | None:
        """``count`` slots to write ``key`` to, evicting for them. None, and no change, if the key
        is there already or the room cannot be had now. ``commit`` or ``abort`` must follow."""
        shelf = self._shelves[tier]
        if key in shelf.held or count > shelf.num_available:
            return None
        while len(shelf.free) < count:
            self._evict(shelf.victim())
        held = shelf.add(key, count)
        self._num_used += count
        if tier is Tier.HOST:
            held.worth = Worth.SPARE if is_on_device else self._worth(key)
        return held

    def commit(self, held: Held) -> None:
        """All bytes are in the slots: READY."""
        self._expect(held, HeldState.WRITING)
        held.state = HeldState.READY
        self._shelves[held.tier].rest(held)
        self._on_change(held.tier, held.key, True)
        self._reassess(held)

    def abort(self, held: Held) -> None:
        """The writer gives up and writes no more: the slots are free."""
        self._expect(held, HeldState.WRITING)
        self._shelves[held.tier].forget(held)

    def pin(self, tier: Tier, key: ContentHash) -> Held | None:
        """Keep a READY entry's slots as they are until ``unpin``; None if it is not READY."""
        shelf = self._shelves[tier]
        held = shelf.held.get(key)
        if held is None or not held.is_ready:
            return None
        if held.pins == 0:
            shelf.rouse(held)
            self._num_used += len(held.slots)
        held.pins += 1
        return held

    def unpin(self, held: Held, *, is_cold: bool = False) -> None:
        """Undo one ``pin``. The entry counts as used now, or (``is_cold``) as unused for
        longest: it was read to be demoted."""
        self._shelves[held.tier].unpin(held, is_cold=is_cold)
        self._num_used += len(held.slots)

    def discard(self, held: Held) -> None:
        """A READY entry's bytes are no good: forget it. Does nothing if it is forgotten."""
        if held.is_ready:
            self._forget(held)

    def lift(self, key: ContentHash) -> None:
        """The device holds ``key`` (again)."""
        held = self._host.held.get(key)
        if held is not None:
            self._host.use(held, Worth.SPARE)

    def sink(self, key: ContentHash) -> bool:
        """The device holds ``key`` no longer. Whether a tier does; it counts as used now."""
        above, below = self._host.held.get(key), self._disk.held.get(key)
        if above is not None:
            self._host.use(above, self._worth(key))
            self._num_used += len(above.slots)
        if below is not None:
            self._disk.use(below, Worth.ONLY)
        return above is not None or below is not None

    def demotions(self, count: int) -> list[ContentHash]:
        """Up to ``count`` host entries to copy to the disk now, in this order, so that room can be
        made without loss; none while there is enough of such room, or no disk to take them. As it
        takes long to look, that is done when half of the room may have been used."""
        if 2 * self._num_used < self._reserve:
            return []
        easy = len(self._host.free) + self._host.num_spare
        chosen: list[ContentHash] = []
        for key, held in self._host.idle.items():
            if easy >= self._reserve or len(chosen) == count:
                break
            if self._can_sink(held):
                held.is_sinking = True
                chosen.append(key)
            easy += len(held.slots)
        if easy >= self._reserve and not chosen:
            self._num_used = 0
        return chosen

    def is_sinking(self, key: ContentHash) -> bool:
        """Whether ``key`` was chosen for demotion, and nothing speaks against it since. Pure."""
        held = self._host.idle.get(key)
        return held is not None and held.is_sinking and self._can_sink(held)

    def _can_sink(self, held: Held) -> bool:
        is_only = held.worth is Worth.ONLY and held.key not in self._disk.held
        return is_only and len(held.slots) <= self._disk.num_slots

    def unsaved(self) -> list[ContentHash]:
        """What of the host would be missed after a restart, most valuable first, no more than the
        disk takes. Pure."""
        every = [*self._host.spare.values(), *reversed(self._host.idle.values())]
        chosen, room = [], self._disk.num_slots
        for held in every:
            room -= len(held.slots)
            if room < 0:
                break
            if held.key not in self._disk.held:
                chosen.append(held.key)
        return chosen

    def totals(self, name: str) -> dict[str, int]:
        """Sizes for the census, in slots; ``cached`` ones are READY and read by nobody."""
        sizes = {}
        for tier, shelf in self._shelves.items():
            if shelf.num_slots:
                pool = f"{name}_{tier.value}_slot"
                sizes[f"{pool}.total"] = shelf.num_slots
                sizes[f"{pool}.free"] = len(shelf.free)
                sizes[f"{pool}.cached"] = shelf.num_idle + shelf.num_spare
        return sizes

    def check(self) -> None:
        """Raise InvariantBroken unless slots, idle entries and worths are in order."""
        for shelf in self._shelves.values():
            shelf.check()
        for key, held in self._host.held.items():
            if held.worth is not Worth.SPARE and held.worth is not self._worth(key):
                raise InvariantBroken("tiers: an entry's worth is out of date")
        if any(held.worth is not Worth.ONLY for held in self._disk.held.values()):
            raise InvariantBroken("tiers: nothing is below the disk")

    def _worth(self, key: ContentHash) -> Worth:
        """What would be lost with the host's entry, the device apart."""
        below = self._disk.held.get(key)
        return Worth.KEPT if below is not None and below.is_ready else Worth.ONLY

    def _reassess(self, below: Held) -> None:
        """What the disk holds, or lost, decides what the host's entry of that key is worth."""
        above = self._host.held.get(below.key)
        if below.tier is Tier.DISK and above is not None and above.worth is not Worth.SPARE:
            above.worth = self._worth(below.key)
            self._num_used += len(above.slots)

    def _evict(self, victim: Held) -> None:
        is_kept = victim.worth is not Worth.ONLY or (
            victim.tier is Tier.DISK and victim.key in self._host.held
        )
        self.num_lost += not is_kept
        self._forget(victim)

    def _forget(self, held: Held) -> None:
        if held.pins == 0:
            self._shelves[held.tier].rouse(held)
        self._shelves[held.tier].forget(held)
        self._on_change(held.tier, held.key, False)
        self._reassess(held)

    @staticmethod
    def _expect(held: Held, state: HeldState) -> None:
        if held.state is not state:
            raise InvariantBroken(f"tiers: an entry is {held.state.value}, not {state.value}")
