"""The table of offers beside a dict that says of each handle what it should be, and who is told."""

from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest

from kvtransfer.lease import Ended, LeaseState, Release, Verdict
from kvtransfer.manifest import Fetch
from tests.kvtransfer.stores import Store
from tests.kvtransfer.test_lease import promise, table
from tests.machines import Counted, run
from triptych.core.errors import InvariantBroken
from triptych.core.ids import Handle

NUM_HANDLES = 4
TAKERS = ("t", "u")
LEASE_S = 10.0


def fetch_of(handle, epoch, store):
    return Fetch(handle, epoch, store.layout.fingerprint, 0, 1, "tcp")


@dataclass
class Promise:
    """An offer as the model knows it."""

    offer: Any
    told: list[str]
    state: str = "promised"
    taker: str = ""
    is_complete: bool = False
    deadline_s: float | None = None
    ending: Verdict | None = None
    """Why it will end, where a taker must be fenced off first."""
    expected: list[str] = field(default_factory=list)
    """What its owner should have been told."""


class LeaseMachine(Counted):
    """Producers, two takers, cancellers and time on a few handles."""

    operations = (
        *(
            "promise",
            "promise",
            "produce",
            "produce",
            "produce",
            "refuse",
            "fetch",
            "fetch",
            "fetch",
        ),
        *("give_up", "take", "take", "lose", "time_passes", "relieve", "renew", "renew"),
    )

    def __init__(self):
        super().__init__()
        self.store = Store(9)
        self.offers, self.clock = table(LEASE_S)
        self.wakes: Counter[str] = Counter()
        self.expected_wakes: Counter[str] = Counter()
        self.wake = {taker: partial(self.count, taker) for taker in TAKERS}
        self.handles = [f"h{number}" for number in range(NUM_HANDLES)]
        self.num_handles = NUM_HANDLES
        self.current: dict[str, Promise] = {}
        self.over: list[Promise] = []
        self.verdicts: dict[str, str] = {}
        """Reason by handle that is over; the first one stays."""
        self.waiting: dict[str, str] = {}
        """Taker by handle that is not offered yet."""

    def count(self, taker):
        self.wakes[taker] += 1

    def end(self, handle, reason):
        promised = self.current.pop(handle)
        promised.state = "over"
        promised.expected.append(reason)
        self.verdicts.setdefault(handle, reason)
        self.over.append(promised)

    def promise(self, choices):
        handle = choices.of(self.handles)
        if handle in self.current:
            with pytest.raises(InvariantBroken):
                promise(self.offers, self.store, handle)
            return
        self.expected_wakes[self.waiting.get(handle, "")] += 1
        self.current[handle] = Promise(*promise(self.offers, self.store, handle))
        if handle in self.verdicts:
            self.end(handle, "withdrawn")

    def produce(self, choices):
        handle, kind = choices.of(self.handles), choices.of(("append", "append", "finish", "fail"))
        promised = self.current.get(handle)
        if promised is None:
            return
        call = {
            "append": lambda: promised.offer.append([choices.below(9)]),
            "finish": lambda: promised.offer.finish(b"tail"),
            "fail": lambda: promised.offer.fail("internal", "it broke"),
        }[kind]
        if promised.state == "taken":
            call()  # too late, and no harm
            return
        if promised.is_complete and kind != "fail":
            with pytest.raises(InvariantBroken):
                call()
            return
        call()
        if kind == "finish":
            promised.is_complete = True
            promised.deadline_s = self.clock.now() + LEASE_S
        self.changed(handle, Verdict(Release.FAILED) if kind == "fail" else None)

    def changed(self, handle, verdict):
        """Who is connected is woken; an offer that nobody fetches ends at once."""
        promised = self.current[handle]
        promised.ending = promised.ending or verdict
        self.expected_wakes[promised.taker] += 1
        if promised.ending is not None and promised.state == "promised":
            self.end(handle, promised.ending.reason.value)

    def refuse(self, choices):
        handle = choices.of(self.handles)
        verdict = Verdict(Release.WITHDRAWN, "cancelled")
        promised = self.current.get(handle)
        found = self.offers.refuse(Handle(handle), verdict)
        assert found is (None if promised is None else promised.offer)
        self.expected_wakes[self.waiting.get(handle, "")] += 1
        if promised is None:
            self.verdicts.setdefault(handle, "withdrawn")
        elif promised.state != "taken":
            self.changed(handle, verdict)

    def fetch(self, choices):
        handle, taker, epoch = choices.of(self.handles), choices.of(TAKERS), choices.below(5) // 4
        promised = self.current.get(handle)
        is_refused = (
            handle in self.verdicts
            or (promised is not None and promised.state != "promised")
            or self.waiting.get(handle, taker) != taker
        )
        fetch = fetch_of(handle, epoch, self.store)
        try:
            offer = self.offers.claim(fetch, taker, self.wake[taker])
        except Ended as ended:
            if not is_refused:
                assert epoch == 1
                self.waiting.pop(handle, None)
            elif handle in self.verdicts:
                assert ended.verdict.reason.value == self.verdicts[handle]  # noqa: PT017
            return
        assert not is_refused
        if promised is None:
            assert offer is None
            self.waiting[handle] = taker
            return
        assert offer is promised.offer
        assert epoch == 0
        self.waiting.pop(handle, None)
        promised.state, promised.taker = "open", taker

    def give_up(self, choices):
        handle, taker = choices.of(self.handles), choices.of(TAKERS)
        fetch = fetch_of(handle, 0, self.store)
        self.offers.give_up(fetch, self.wake[taker])
        if self.waiting.get(handle) == taker:
            del self.waiting[handle]

    def take(self, choices):
        """The taker's ack comes, or, if it came before, the lease is settled."""
        handle = choices.of(self.handles)
        promised = self.current.get(handle)
        if promised is None or promised.state == "promised" or not promised.is_complete:
            return
        if promised.state == "taken":
            assert promised.told == [], "not before it is settled"
            self.offers.settle(promised.offer, Verdict(Release.TAKEN))
            self.end(handle, "taken")
        elif promised.ending is None:
            self.offers.take(promised.offer)
            promised.state = "taken"
        else:
            with pytest.raises(Ended) as ended:
                self.offers.take(promised.offer)
            assert ended.value.verdict.reason is promised.ending.reason
            self.offers.settle(promised.offer, ended.value.verdict)
            self.end(handle, promised.ending.reason.value)

    def lose(self, choices):
        handle = choices.of(self.handles)
        promised = self.current.get(handle)
        if promised is not None and promised.state == "open":
            verdict = promised.ending or Verdict(Release.TAKER_LOST)
            self.offers.settle(promised.offer, verdict)
            self.end(handle, verdict.reason.value)

    def time_passes(self, choices):
        self.clock.advance(choices.of((0.5, 3.0, LEASE_S)))
        self.offers.sweep()
        for handle, promised in list(self.current.items()):
            is_late = promised.deadline_s is not None and promised.deadline_s <= self.clock.now()
            if promised.state == "promised" and is_late:
                self.end(handle, "expired")

    def relieve(self, choices):
        """Offers have no room; the youngest untaken one goes if a taker waits for one of them."""
        handles = {choices.of(self.handles), choices.of(self.handles)}
        awaited = {h for h in handles & set(self.current) if self.current[h].state == "open"}
        idle = [
            handle
            for handle, promised in self.current.items()
            if promised.state == "promised" and promised.is_complete
        ]
        assert self.offers.relieve(self.store, handles) == awaited
        if awaited and idle:
            self.end(idle[-1], "revoked")

    def renew(self, choices):
        """What is over stays over: go on with a new handle in its place."""
        place = choices.below(len(self.handles))
        if self.handles[place] in self.verdicts:
            self.num_handles += 1
            self.handles[place] = f"h{self.num_handles}"

    def agree(self):
        assert len(self.offers.owners()) == len(self.current)
        for promised in [*self.current.values(), *self.over[-4:]]:
            promised.offer.lease.check()
            assert promised.told == promised.expected, "told once, and the truth"
            state = promised.offer.lease.state
            assert state.value == promised.state.replace("over", "released")
            assert promised.offer.settled.done() == (state is LeaseState.RELEASED)
        for taker in TAKERS:
            assert self.wakes[taker] == self.expected_wakes[taker]

    def teardown(self):
        for handle, promised in list(self.current.items()):
            if promised.state == "taken":
                self.offers.settle(promised.offer, Verdict(Release.TAKEN))
                self.end(handle, "taken")
            elif promised.state == "open":
                self.offers.settle(promised.offer, Verdict(Release.TAKER_LOST))
                self.end(handle, "taker_lost")
        self.offers.stop()
        assert self.offers.owners() == []
        for handle in list(self.current):
            self.end(handle, "withdrawn")
        assert all(promised.told == promised.expected for promised in self.over)
        self.store.close()


def test_lease_table_against_a_dict():
    run("lease", LeaseMachine, examples=60)
