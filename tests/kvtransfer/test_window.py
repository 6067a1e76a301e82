"""Credits of a link: never more than there are, and the earliest deadline first."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kvtransfer.window import Window


def nobody() -> None:
    """Is woken."""


def test_credits_go_to_the_earliest_deadline():
    window, woken = Window(2), []
    late = window.claim(9.0, lambda: woken.append("late"))
    late.want(5)
    assert late.collect() == 2
    soon = window.claim(1.0, lambda: woken.append("soon"))
    soon.want(3)
    assert soon.collect() == 0
    assert late.began()
    late.ended()
    assert (soon.collect(), late.collect()) == (1, 0)
    assert late.began()
    late.ended()
    assert (soon.collect(), late.collect()) == (1, 0)
    assert soon.began()
    soon.ended()
    assert soon.collect() == 1
    assert woken == ["soon", "soon"]
    window.leave(soon)
    assert late.collect() == 2, "the rest is the other's again"
    assert late.returned(2)
    assert not late.returned(1)
    assert not late.began()
    window.leave(late)
    assert window.num_free == 2


def test_the_first_credits_leave_one_for_who_knows_what_is_ready():
    window = Window(4)
    first, second, third = (window.claim(1.0, nobody) for _ in range(3))
    assert [claim.begin(2) for claim in (first, second, third)] == [2, 1, 0]
    third.want(3)
    assert third.collect() == 1
    assert first.returned(2)
    assert third.collect() == 2
    for claim in (first, second, third):
        window.leave(claim)
    assert window.num_free == 4


class Life(RuleBasedStateMachine):
    """Claims in any order against what may never happen."""

    names = st.sampled_from("abcd")

    @initialize(size=st.integers(2, 4))
    def begin(self, size):
        self.window = Window(size)
        self.claims = {}

    @rule(name=names, deadline=st.integers(0, 3), count=st.integers(0, 3))
    def come(self, name, deadline, count):
        if name not in self.claims:
            claim = self.claims[name] = self.window.claim(float(deadline), nobody)
            assert claim.begin(count) <= count

    @rule(name=names)
    def go(self, name):
        if claim := self.claims.pop(name, None):
            self.window.leave(claim)

    @rule(name=names, count=st.integers(0, 5))
    def want(self, name, count):
        if claim := self.claims.get(name):
            claim.want(count)

    @rule(name=names)
    def collect(self, name):
        if claim := self.claims.get(name):
            claim.collect()

    @rule(name=names)
    def read(self, name):
        if (claim := self.claims.get(name)) and claim.began():
            claim.ended()

    @rule(name=names)
    def give_back(self, name):
        if claim := self.claims.get(name):
            assert claim.returned(claim.num_out)

    @invariant()
    def no_credit_is_made_or_lost(self):
        if hasattr(self, "claims"):
            held = sum(c.granted + c.num_out + c.num_reading for c in self.claims.values())
            assert held + self.window.num_free == self.window.size

    @invariant()
    def none_lies_idle_while_somebody_wants_it(self):
        if hasattr(self, "claims"):
            assert not self.window.num_free or not any(c.wanted for c in self.claims.values())


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
