"""Leases and offers: only legal moves, told exactly once, for any order of events."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kvtransfer.lease import Ended, Lease, LeaseState, Release, Verdict
from kvtransfer.manifest import MAX_TAIL_BYTES, Fetch
from kvtransfer.offer import Offer, Offers
from tests.kvtransfer.stores import Store
from triptych.core.clock import ManualClock
from triptych.core.errors import InvariantBroken
from triptych.core.ids import Handle

LEGAL = {
    ("promised", "open"),
    ("promised", "released"),
    ("open", "taken"),
    ("open", "released"),
    ("taken", "released"),
}


@pytest.mark.parametrize("before", LeaseState)
@pytest.mark.parametrize("after", LeaseState)
def test_which_state_may_follow_which(before, after):
    lease = Lease(Handle("h"), 0, "job")
    lease.state = before
    moves = {
        LeaseState.OPEN: lambda: lease.open("taker", 0.0),
        LeaseState.TAKEN: lambda: lease.take(0.0),
        LeaseState.RELEASED: lambda: lease.release(
            Release.TAKEN if before is LeaseState.TAKEN else Release.WITHDRAWN
        ),
    }
    if after not in moves:
        return
    if (before.value, after.value) in LEGAL:
        moves[after]()
        assert lease.state is after
    else:
        with pytest.raises(InvariantBroken):
            moves[after]()


def test_a_release_says_the_truth():
    lease = Lease(Handle("h"), 0, "job")
    with pytest.raises(InvariantBroken):
        lease.release(Release.TAKEN)
    lease.open("taker", 1.0)
    with pytest.raises(InvariantBroken, match="connected"):
        lease.release(Release.EXPIRED)
    lease.take(2.0)
    with pytest.raises(InvariantBroken):
        lease.release(Release.WITHDRAWN)
    lease.release(Release.TAKEN)
    lease.check()


def test_check_finds_contradictions():
    for state, taker, reason in (
        (LeaseState.PROMISED, "x", None),
        (LeaseState.OPEN, "", None),
        (LeaseState.RELEASED, "", None),
        (LeaseState.OPEN, "x", Release.TAKEN),
    ):
        lease = Lease(Handle("h"), 0, "job")
        lease.state, lease.taker, lease.reason = state, taker, reason
        with pytest.raises(InvariantBroken):
            lease.check()


def table(lease_s=10.0):
    clock = ManualClock()
    return Offers(lease_s, clock, lambda call, *args: call(*args)), clock


def promise(offers, store, handle="h"):
    told = []
    offer = Offer(Lease(Handle(handle), 0, "job"), store, told.append, offers.change)
    offers.add(offer)
    return offer, told


@pytest.fixture
def store():
    made = Store(9)
    yield made
    made.close()


def test_the_lease_counts_from_the_end_of_the_offer(store):
    offers, clock = table()
    offer, told = promise(offers, store)
    clock.advance(100)
    offers.sweep()
    offer.append([1])
    offer.finish()
    clock.advance(9.9)
    offers.sweep()
    assert told == []
    clock.advance(0.1)
    offers.sweep()
    offers.sweep()
    assert told == ["expired"]


def test_an_ack_behind_the_withdrawal_comes_too_late(store):
    offers, _ = table()
    offer, told = promise(offers, store)
    offer.finish()
    assert offers.claim(Fetch("h", 0, store.layout.fingerprint, 0, 0, "tcp"), "taker", int) is offer
    offers.refuse(Handle("h"), Verdict(Release.WITHDRAWN, "cancelled"))
    assert told == [], "a taker is connected: it is fenced off first"
    with pytest.raises(Ended) as ended:
        offers.take(offer)
    offers.settle(offer, ended.value.verdict)
    assert told == ["withdrawn"]


def test_misuse_of_an_offer(store):
    offers, _ = table()
    offer, _ = promise(offers, store)
    with pytest.raises(InvariantBroken, match="already"):
        promise(offers, store)
    with pytest.raises(InvariantBroken, match="tail"):
        offer.finish(bytes(MAX_TAIL_BYTES + 1))
    offer.finish(b"x")
    with pytest.raises(InvariantBroken, match="behind"):
        offer.append([1])
    with pytest.raises(InvariantBroken, match="twice"):
        offer.finish()


def test_old_verdicts_are_forgotten_in_time(store, monkeypatch):
    monkeypatch.setattr("kvtransfer.offer.MAX_VERDICTS", 5)
    offers, _ = table()
    for number in range(20):
        offers.refuse(Handle(f"h{number}"), Verdict(Release.WITHDRAWN))
    assert len(offers._verdicts) == 5


class Life(RuleBasedStateMachine):
    """Producer, taker, canceller and time act in any order on a few handles."""

    handles = st.sampled_from(["a", "b", "c"])

    @initialize()
    def begin(self):
        self.store = Store(9)
        self.offers, self.clock = table()
        self.made: dict[str, tuple[Offer, list[str]]] = {}
        self.open: dict[str, Offer] = {}
        self.waiting: set[str] = set()
        self.turn = 0

    def teardown(self):
        if hasattr(self, "store"):
            for handle in list(self.open):
                self.lose(handle)
            self.offers.stop()
            assert self.offers.owners() == []
            for offer, told in self.made.values():
                assert len(told) == 1, "told exactly once"
                assert offer.settled.done()
            self.store.close()

    def wake(self):
        """Of the only taker; equal to itself at every call."""

    @rule(handle=handles)
    def promise(self, handle):
        if handle not in self.made:
            self.made[handle] = promise(self.offers, self.store, handle)
            self.made[handle][0].lease.check()

    @rule(handle=handles, blocks=st.lists(st.integers(0, 8), max_size=3))
    def append(self, handle, blocks):
        if handle in self.made and self.made[handle][0].tail is None:
            self.made[handle][0].append(blocks)

    @rule(handle=handles)
    def finish(self, handle):
        if handle in self.made and self.made[handle][0].tail is None:
            self.made[handle][0].finish(b"tail")

    @rule(handle=handles)
    def fail(self, handle):
        if handle in self.made:
            self.made[handle][0].fail("internal", "it broke")

    @rule(handle=handles)
    def withdraw(self, handle):
        self.offers.refuse(Handle(handle), Verdict(Release.WITHDRAWN, "cancelled"))

    @rule(handle=handles, epoch=st.integers(0, 1))
    def fetch(self, handle, epoch):
        fetch = Fetch(handle, epoch, self.store.layout.fingerprint, 0, 4, "tcp")
        try:
            offer = self.offers.claim(fetch, "taker", self.wake)
        except Ended:
            is_over = handle in self.open or self.made.get(handle, (0, [1]))[1]
            assert is_over or epoch == 1
            return
        if offer is None:
            assert handle not in self.made
        else:
            self.open[handle] = offer

    @rule(handle=handles)
    def take(self, handle):
        offer = self.open.get(handle)
        if offer is None or offer.tail is None:
            return
        was_ended = offer.verdict is not None
        try:
            self.offers.take(offer)
            assert not was_ended, "withdrawn is withdrawn: an ack comes too late"
        except Ended as ended:
            self.offers.settle(self.open.pop(handle), ended.verdict)
            return
        self.offers.refuse(Handle(handle), Verdict(Release.WITHDRAWN))
        assert self.made[handle][1] == [], "taken is taken: withdrawing comes too late"
        self.offers.settle(self.open.pop(handle), Verdict(Release.TAKEN))
        assert self.made[handle][1] == ["taken"]

    @rule(handle=handles)
    def lose(self, handle):
        offer = self.open.pop(handle, None)
        if offer is not None:
            verdict = offer.verdict or Verdict(Release.TAKER_LOST)
            self.offers.settle(offer, verdict)

    @rule(seconds=st.sampled_from([1.0, 11.0]))
    def time_passes(self, seconds):
        self.clock.advance(seconds)
        self.offers.sweep()

    @invariant()
    def nobody_is_released_while_a_taker_reads(self):
        for handle, offer in getattr(self, "open", {}).items():
            assert offer.lease.state is LeaseState.OPEN
            assert self.made[handle][1] == []

    @invariant()
    @precondition(lambda self: hasattr(self, "made"))
    def the_table_holds_exactly_what_is_not_over(self):
        living = [offer for offer, told in self.made.values() if not told]
        assert len(self.offers.owners()) == len(living)
        for offer, told in self.made.values():
            offer.lease.check()
            assert (offer.lease.state is LeaseState.RELEASED) == bool(told)
            assert len(told) <= 1


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
