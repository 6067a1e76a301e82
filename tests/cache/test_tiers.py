"""The index of the tiers against a model that looks everything up the slow way."""

import itertools

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from triptych.cache.shelf import HeldState, Worth
from triptych.cache.tiers import TierIndex
from triptych.core.catalog import Tier
from triptych.core.errors import InvariantBroken
from triptych.core.ids import ContentHash

KEYS = [ContentHash(bytes([number]) * 32) for number in range(9)]
HOST_SLOTS, DISK_SLOTS = 7, 5
SLOTS = {Tier.HOST: HOST_SLOTS, Tier.DISK: DISK_SLOTS}
NUM_OPERATIONS = 20_000
keys, tiers = st.sampled_from(KEYS), st.sampled_from([Tier.HOST, Tier.DISK])


def key_of(number: int) -> ContentHash:
    return ContentHash(bytes([number]) * 32)


class Slow:
    """One entry as the model sees it."""

    def __init__(self, count, is_on_device):
        self.count = count
        self.is_ready = False
        self.pins = 0
        self.is_on_device = is_on_device
        self.used = 0


class Machine(RuleBasedStateMachine):
    """Random operations on an index and on the model."""

    num_operations = 0

    def __init__(self):
        super().__init__()
        self.told = []
        self.index = TierIndex(
            HOST_SLOTS, DISK_SLOTS, on_change=lambda *change: self.told.append(change)
        )
        self.model = {Tier.HOST: {}, Tier.DISK: {}}
        self.doomed = {Tier.HOST: [], Tier.DISK: []}
        self.writing, self.reading = [], []
        self.ticks = itertools.count(1)
        self.expected = []

    # -- the model

    def worth(self, tier, key):
        if tier is Tier.DISK:
            return 2
        if self.model[tier][key].is_on_device:
            return 0
        below = self.model[Tier.DISK].get(key)
        return 1 if below is not None and below.is_ready else 2

    def used(self, tier):
        entries = [*self.model[tier].values(), *self.doomed[tier]]
        return sum(entry.count for entry in entries)

    def idle(self, tier):
        return [key for key, one in self.model[tier].items() if one.is_ready and not one.pins]

    def victim(self, tier):
        def rank(key):
            worth, used = self.worth(tier, key), self.model[tier][key].used
            return (worth > 0, -used if worth == 0 else used)

        return min(self.idle(tier), key=rank)

    def touch(self, tier, key, *, is_cold=False):
        tick = next(self.ticks)
        entry = self.model[tier][key]
        # Of what the device holds, the order is that of coming, whatever it is read for.
        entry.used = -tick if is_cold and not entry.is_on_device else tick

    def forget(self, tier, key):
        entry = self.model[tier].pop(key)
        if entry.pins:
            self.doomed[tier].append(entry)
        self.expected.append((tier, key, False))

    # -- operations

    def begin_with(self, tier, key, count, is_on_device):
        held = self.index.begin(tier, key, count, is_on_device=is_on_device)
        model = self.model[tier]
        spare = SLOTS[tier] - self.used(tier) + sum(model[one].count for one in self.idle(tier))
        assert (held is not None) == (key not in model and count <= spare)
        if held is None:
            return
        while SLOTS[tier] - self.used(tier) < count:
            self.forget(tier, self.victim(tier))
        model[key] = Slow(count, is_on_device and tier is Tier.HOST)
        self.writing.append((held, model[key]))

    @rule(tier=tiers, key=keys, count=st.integers(1, 3), is_on_device=st.booleans())
    def begin(self, tier, key, count, is_on_device):
        self.begin_with(tier, key, count, is_on_device)

    @rule(key=keys)
    def copy(self, key):
        """The usual way: written at once."""
        self.begin_with(Tier.HOST, key, 1, True)
        self.commit()

    @rule()
    def demote(self):
        key = next(iter(self.index.demotions(1)), None)
        host, disk = self.model[Tier.HOST], self.model[Tier.DISK]
        is_full = self.used(Tier.HOST) == HOST_SLOTS
        idle = sorted(self.idle(Tier.HOST), key=lambda one: host[one].used)
        spare = [one for one in idle if host[one].is_on_device]
        if is_full and idle and not spare and idle[0] not in disk:
            assert key == idle[0]
            self.begin_with(Tier.DISK, key, host[key].count, False)
            self.commit()
        else:
            assert key is None

    @rule()
    def commit(self):
        if self.writing:
            held, entry = self.writing.pop()
            self.index.commit(held)
            entry.is_ready = True
            self.expected.append((held.tier, held.key, True))
            self.touch(held.tier, held.key)

    @rule()
    def abort(self):
        if self.writing:
            held, _ = self.writing.pop(0)
            self.index.abort(held)
            del self.model[held.tier][held.key]

    @rule(tier=tiers, key=keys)
    def pin(self, tier, key):
        held = self.index.pin(tier, key)
        entry = self.model[tier].get(key)
        assert (held is not None) == (entry is not None and entry.is_ready)
        if held is not None:
            assert len(held.slots) == entry.count
            entry.pins += 1
            self.reading.append((held, entry))

    @rule(is_cold=st.booleans())
    def unpin(self, is_cold):
        if self.reading:
            held, entry = self.reading.pop(0)
            self.index.unpin(held, is_cold=is_cold)
            entry.pins -= 1
            if entry in self.doomed[held.tier]:
                if not entry.pins:
                    self.doomed[held.tier].remove(entry)
                    assert held.state is HeldState.GONE
            elif not entry.pins:
                self.touch(held.tier, held.key, is_cold=is_cold)

    @rule(which=st.booleans())
    def discard(self, which):
        if self.reading:
            held, entry = self.reading[0 if which else -1]
            self.index.discard(held)
            if entry not in self.doomed[held.tier]:
                self.forget(held.tier, held.key)

    @rule(key=keys)
    def lift(self, key):
        self.index.lift(key)
        if key in self.model[Tier.HOST]:
            self.model[Tier.HOST][key].is_on_device = True
            self.touch(Tier.HOST, key)

    @rule(key=keys)
    def sink(self, key):
        is_known = False
        for tier, model in self.model.items():
            if key in model:
                is_known = True
                model[key].is_on_device = False
                self.touch(tier, key)
        assert self.index.sink(key) == is_known

    @invariant()
    def agree(self):
        type(self).num_operations += 1
        self.index.check()
        assert self.told == self.expected
        for tier, model in self.model.items():
            ready = {key for key, entry in model.items() if entry.is_ready}
            assert set(self.index.keys(tier)) == ready
            assert all(self.index.has(tier, key) == (key in model) for key in KEYS)
            sizes, name = self.index.totals("x"), f"x_{tier.value}_slot"
            assert sizes[f"{name}.free"] == SLOTS[tier] - self.used(tier)
            assert sizes[f"{name}.cached"] == sum(model[key].count for key in self.idle(tier))
        places = [self.index.find(key) for key in KEYS]
        count = next((at for at, place in enumerate(places) if place is None), len(KEYS))
        assert self.index.covered(KEYS) == count


def test_the_index_does_what_the_model_does():
    Machine.num_operations = 0
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=150,
            stateful_step_count=180,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert Machine.num_operations >= NUM_OPERATIONS


def put(index: TierIndex, tier: Tier, key: ContentHash, count: int = 1, **where: bool) -> None:
    held = index.begin(tier, key, count, **where)
    assert held is not None
    index.commit(held)


def test_what_the_device_holds_goes_first_and_its_newest_before_its_oldest():
    index = TierIndex(4)
    put(index, Tier.HOST, key_of(0))
    for number in (1, 2, 3):
        put(index, Tier.HOST, key_of(number), is_on_device=True)
    put(index, Tier.HOST, key_of(4))
    assert set(index.keys(Tier.HOST)) == {key_of(number) for number in (0, 1, 2, 4)}
    index.sink(key_of(1))
    put(index, Tier.HOST, key_of(5))
    put(index, Tier.HOST, key_of(6))
    assert set(index.keys(Tier.HOST)) == {key_of(number) for number in (1, 4, 5, 6)}
    assert index.num_lost == 1


def test_what_was_just_used_stays_though_it_is_on_the_disk_too():
    index = TierIndex(3, 9)
    for number in range(3):
        put(index, Tier.DISK, key_of(number))
        put(index, Tier.HOST, key_of(number))
    held = index.pin(Tier.HOST, key_of(0))
    assert held is not None
    index.unpin(held)
    put(index, Tier.HOST, key_of(3))
    assert set(index.keys(Tier.HOST)) == {key_of(number) for number in (0, 2, 3)}
    held = index.pin(Tier.HOST, key_of(3))
    assert held is not None
    index.unpin(held, is_cold=True)
    put(index, Tier.HOST, key_of(4))
    assert index.find(key_of(3)) is None


def test_a_reader_keeps_its_slots_from_whoever_writes():
    index = TierIndex(2)
    put(index, Tier.HOST, key_of(0), 2)
    held = index.pin(Tier.HOST, key_of(0))
    assert held is not None and index.begin(Tier.HOST, key_of(1), 1) is None
    index.discard(held)
    assert index.find(key_of(0)) is None and index.begin(Tier.HOST, key_of(1), 1) is None
    index.unpin(held)
    assert index.begin(Tier.HOST, key_of(1), 2) is not None


def test_entries_of_an_earlier_life_are_there_in_their_order():
    adopted = {key_of(3): (1,), key_of(4): (4, 2)}
    index = TierIndex(1, 5, adopted)
    assert index.find(key_of(3)) is index.find(key_of(4)) is Tier.DISK
    put(index, Tier.DISK, key_of(5), 3)
    assert index.find(key_of(3)) is None
    assert index.find(key_of(4)) is Tier.DISK
    index.check()


def test_demotion_of_a_host_larger_than_the_disk_comes_to_an_end():
    index = TierIndex(64, 6)
    for number in range(64):
        put(index, Tier.HOST, key_of(number))
    for _ in range(100):
        for key in index.demotions(2):
            put(index, Tier.DISK, key)
    assert index.demotions(2) == []
    assert len(set(index.keys(Tier.DISK))) >= 3


def test_what_is_used_after_it_was_chosen_does_not_sink():
    index = TierIndex(16, 16)
    for number in range(16):
        put(index, Tier.HOST, key_of(number))
    chosen = index.demotions(2)
    assert chosen == [key_of(0), key_of(1)] and all(map(index.is_sinking, chosen))
    held = index.pin(Tier.HOST, key_of(0))
    assert held is not None
    index.unpin(held)
    assert [index.is_sinking(key) for key in chosen] == [False, True]
    put(index, Tier.DISK, key_of(1))
    assert not index.is_sinking(key_of(1))


def test_room_that_was_not_found_is_looked_for_again():
    """While everything is read nothing can be chosen; that is not the same as enough room."""
    index = TierIndex(32, 32)
    for number in range(32):
        put(index, Tier.HOST, key_of(number))
    held = [index.pin(Tier.HOST, key_of(number)) for number in range(32)]
    assert index.demotions(8) == []
    assert held[7] is not None
    index.unpin(held[7])
    assert index.demotions(8) == [key_of(7)]


def test_what_is_saved_at_the_end_fits_and_is_what_matters_most():
    index = TierIndex(6, 2)
    for number in range(4):
        put(index, Tier.HOST, key_of(number))
    put(index, Tier.HOST, key_of(4), is_on_device=True)
    assert index.unsaved() == [key_of(4), key_of(3)]


def test_misuse_is_a_bug():
    index = TierIndex(2)
    held = index.begin(Tier.HOST, key_of(0), 1)
    assert held is not None and held.worth is Worth.ONLY
    index.commit(held)
    with pytest.raises(InvariantBroken):
        index.commit(held)
    with pytest.raises(InvariantBroken):
        index.abort(held)
    with pytest.raises(InvariantBroken):
        index.unpin(held)
