"""One tier below a block store: its slots, what is in them, and who goes first.

    absent --add--> WRITING --> READY <--> being read (pins)
      ^                |          |
      '----------------'----------'--forgotten while being read--> DOOMED --last unpin--> absent

Knows keys, slots and worth; not the other tiers, no bytes and no threads.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from enum import Enum

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


class Worth(Enum):
    """What is lost with an entry."""

    SPARE = "spare"
    """Nothing: the device holds it."""
    KEPT = "kept"
    """Time: a slower tier holds it."""
    ONLY = "only"


class Held:
    """One key in one tier. Changed only by the tier's index."""

    __slots__ = ("is_sinking", "key", "pins", "slots", "state", "tier", "worth")

    def __init__(self, tier: Tier, key: ContentHash, slots: Sequence[int]) -> None:
        self.tier = tier
        self.key = key
        self.slots = tuple(slots)
        self.state = HeldState.WRITING
        self.pins = 0
        self.worth = Worth.ONLY
        self.is_sinking = False
        """Whether it was chosen to be copied down, and not used since."""

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
        self.spare: OrderedDict[ContentHash, Held] = OrderedDict()
        self.idle: OrderedDict[ContentHash, Held] = OrderedDict()
        """Idle entries, those of worth SPARE apart; unused for longest first."""
        self.num_spare = self.num_idle = 0
        """Slots of these."""
        for key, slots in (adopted or {}).items():
            held = self.held[key] = Held(tier, key, slots)
            held.state = HeldState.READY
            self.rest(held)
        used = {slot for held in self.held.values() for slot in held.slots}
        self.free = [slot for slot in reversed(range(num_slots)) if slot not in used]

    @property
    def num_available(self) -> int:
        """Slots that can be had now."""
        return len(self.free) + self.num_spare + self.num_idle

    def add(self, key: ContentHash, count: int) -> Held:
        """``count`` free slots for ``key``, which is not here; the caller has counted."""
        held = self.held[key] = Held(self.tier, key, [self.free.pop() for _ in range(count)])
        return held

    def rest(self, held: Held, *, is_cold: bool = False) -> None:
        """The entry is idle from now on: used last, or (``is_cold``) unused for longest."""
        if held.worth is Worth.SPARE:
            self.spare[held.key] = held
            self.num_spare += len(held.slots)
        else:
            self.idle[held.key] = held
            self.idle.move_to_end(held.key, last=not is_cold)
            self.num_idle += len(held.slots)

    def rouse(self, held: Held) -> None:
        """The entry is idle no longer."""
        held.is_sinking = False
        if held.worth is Worth.SPARE:
            del self.spare[held.key]
            self.num_spare -= len(held.slots)
        else:
            del self.idle[held.key]
            self.num_idle -= len(held.slots)

    def use(self, held: Held, worth: Worth) -> None:
        """Another worth, and an idle entry counts as used now."""
        if held.is_idle:
            self.rouse(held)
            held.worth = worth
            self.rest(held)
        else:
            held.worth = worth

    def victim(self) -> Held:
        """The idle entry that is missed least: the newest of what the device holds (blocks of a
        sequence come parents first, and a child is useless without them), or else the one unused
        for longest."""
        if self.spare:
            return self.spare[next(reversed(self.spare))]
        return self.idle[next(iter(self.idle))]

    def forget(self, held: Held) -> None:
        """Not findable from now on; the slots are free at once or with the last reader."""
        del self.held[held.key]
        if held.pins:
            held.state = HeldState.DOOMED
            self.doomed.append(held)
        else:
            held.state = HeldState.GONE
            self.free.extend(held.slots)

    def unpin(self, held: Held, *, is_cold: bool) -> None:
        """Undo one pin."""
        if held.pins < 1:
            raise InvariantBroken("tiers: unpin without a pin")
        held.pins -= 1
        if held.is_idle:
            self.rest(held, is_cold=is_cold)
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
        idle = {key for key, held in self.held.items() if held.is_idle}
        spare = {key for key in idle if self.held[key].worth is Worth.SPARE}
        if set(self.spare) != spare or set(self.idle) != idle - spare:
            raise InvariantBroken("tiers: idle entries are mixed up")
        sizes = [sum(len(self.held[key].slots) for key in keys) for keys in (spare, idle - spare)]
        if [self.num_spare, self.num_idle] != sizes:
            raise InvariantBroken("tiers: idle slots are miscounted")
        if any(held.pins and held.state is HeldState.WRITING for held in every):
            raise InvariantBroken("tiers: an entry is read while it is written")
        if any(not held.pins for held in self.doomed):
            raise InvariantBroken("tiers: a forgotten entry keeps its slots for nobody")
