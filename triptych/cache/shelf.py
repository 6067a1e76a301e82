"""One tier below a block store: its slots, what is in them, and who goes first.

    absent --add--> WRITING --> READY <--> being read (pins)
      ^                |          |
      '----------------'----------'--forgotten while being read--> DOOMED --last unpin--> absent

Knows keys, slots and worth; not the other tiers, no bytes and no threads.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from enum import Enum, IntEnum

from triptych.core.catalog import Tier
from triptych.core.errors import InvariantBroken
from triptych.core.ids import ContentHash


class HeldState(Enum):
    """Life of an entry."""

    WRITING = "writing"
    READY = "ready"
    DOOMED = "doomed"
    """Not findable any more; its slots are free when the last reader is done."""
    GONE = "gone"


class Worth(IntEnum):
    """What is lost with an entry; the least is evicted first."""

    SPARE = 0
    """The device holds it."""
    KEPT = 1
    """A slower tier holds it."""
    ONLY = 2


class Held:
    """One key in one tier. Changed only by the tier's index."""

    __slots__ = ("key", "pins", "slots", "state", "tier", "worth")

    def __init__(self, tier: Tier, key: ContentHash, slots: Sequence[int]) -> None:
        self.tier = tier
        self.key = key
        self.slots = tuple(slots)
        self.state = HeldState.WRITING
        self.pins = 0
        self.worth = Worth.ONLY

    @property
    def is_ready(self) -> bool:
        """Whether it can be found."""
        return self.state is HeldState.READY

    @property
    def is_idle(self) -> bool:
        """Whether it may be evicted."""
        return self.state is HeldState.READY and self.pins == 0


class Shelf:
    """The slots of one tier. ``adopted`` entries are there from the start, used in their order."""

    def __init__(
        self,
        tier: Tier,
        num_slots: int,
        adopted: Mapping[ContentHash, Sequence[int]] | None = None,
    ) -> None:
        self.tier = tier
        self.num_slots = num_slots
        self.held: dict[ContentHash, Held] = {}
        self.doomed: list[Held] = []
        self.idle: dict[Worth, OrderedDict[ContentHash, Held]] = {w: OrderedDict() for w in Worth}
        self.num_idle = dict.fromkeys(Worth, 0)
        """Slots of the idle entries."""
        for key, slots in (adopted or {}).items():
            held = self.held[key] = Held(tier, key, slots)
            held.state = HeldState.READY
            self.rest(held)
        used = {slot for held in self.held.values() for slot in held.slots}
        self.free = [slot for slot in reversed(range(num_slots)) if slot not in used]

    @property
    def num_available(self) -> int:
        """Slots that can be had now."""
        return len(self.free) + sum(self.num_idle.values())

    def add(self, key: ContentHash, count: int) -> Held:
        """``count`` free slots for ``key``, which is not here; the caller has counted."""
        held = self.held[key] = Held(self.tier, key, [self.free.pop() for _ in range(count)])
        return held

    def rest(self, held: Held, *, is_cold: bool = False) -> None:
        """The entry is idle from now on: used last, or (``is_cold``) unused for longest."""
        idle = self.idle[held.worth]
        idle[held.key] = held
        idle.move_to_end(held.key, last=not is_cold)
        self.num_idle[held.worth] += len(held.slots)

    def rouse(self, held: Held) -> None:
        """The entry is idle no longer."""
        del self.idle[held.worth][held.key]
        self.num_idle[held.worth] -= len(held.slots)

    def revalue(self, held: Held, worth: Worth, *, is_cold: bool = False) -> None:
        """Another worth; an idle entry counts as used now, or as unused for longest."""
        if held.is_idle:
            self.rouse(held)
            held.worth = worth
            self.rest(held, is_cold=is_cold)
        else:
            held.worth = worth

    def victim(self) -> Held:
        """The idle entry that is missed least. Of what the device holds, the newest goes first:
        blocks of a sequence come parents first, and a child is useless without them."""
        worth = next(worth for worth in Worth if self.idle[worth])
        chosen = self.idle[worth]
        return chosen[next(reversed(chosen) if worth is Worth.SPARE else iter(chosen))]

    def forget(self, held: Held) -> None:
        """Not findable from now on; the slots are free at once or with the last reader."""
        del self.held[held.key]
        if held.pins:
            held.state = HeldState.DOOMED
            self.doomed.append(held)
        else:
            held.state = HeldState.GONE
            self.free.extend(held.slots)

    def unpin(self, held: Held) -> None:
        """Undo one pin. The entry counts as used now."""
        if held.pins < 1:
            raise InvariantBroken("tiers: unpin without a pin")
        held.pins -= 1
        if held.is_idle:
            self.rest(held)
        elif held.pins == 0:
            self.doomed.remove(held)
            held.state = HeldState.GONE
            self.free.extend(held.slots)

    def check(self) -> None:
        """Raise InvariantBroken unless every slot has one owner and idle entries their place."""
        every = [*self.held.values(), *self.doomed]
        slots = [slot for held in every for slot in held.slots] + self.free
        if sorted(slots) != list(range(self.num_slots)):
            raise InvariantBroken("tiers: a slot has no owner, or two")
        for worth in Worth:
            idle = {key for key, held in self.held.items() if held.is_idle and held.worth is worth}
            if set(self.idle[worth]) != idle:
                raise InvariantBroken("tiers: idle entries are mixed up")
            if self.num_idle[worth] != sum(len(self.held[key].slots) for key in idle):
                raise InvariantBroken("tiers: idle slots are miscounted")
        if any(held.pins and held.state is HeldState.WRITING for held in every):
            raise InvariantBroken("tiers: an entry is read while it is written")
        if any(not held.pins for held in self.doomed):
            raise InvariantBroken("tiers: a forgotten entry keeps its slots for nobody")
