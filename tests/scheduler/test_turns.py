"""Turns are fair: bounded differences, no starvation, nothing gained by splitting or by waiting."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.turns import Turns

TENANTS = ("a", "b", "c")
CHARGES = st.floats(1.0, 100.0)
WEIGHTS = {"a": 1.0, "b": 2.0, "c": 0.5}


def push(turns, tenant, item, charge, *, priority=0, bounded=False):
    turns.push(tenant, item, (charge, charge), (priority, bounded))


@given(st.lists(st.tuples(st.sampled_from(TENANTS), CHARGES), min_size=1, max_size=60))
def test_between_two_turns_of_a_tenant_that_waits_nobody_gets_more_than_the_bound(pushes):
    turns = Turns(WEIGHTS)
    for number, (tenant, charge) in enumerate(pushes):
        push(turns, tenant, (number, charge), charge)
    bound = max(charge / WEIGHTS[tenant] for tenant, charge in pushes)
    since = {tenant: Counter() for tenant in TENANTS}
    left = Counter(tenant for tenant, _ in pushes)
    while len(turns):
        tenant, (_, charge) = turns.pop()
        left[tenant] -= 1
        since[tenant].clear()
        for other in TENANTS:
            if other != tenant and left[other]:
                since[other][tenant] += charge / WEIGHTS[tenant]
                assert since[other][tenant] <= 2 * bound + 1e-6
    assert not +left, "everybody had all his turns"


@given(st.data())
@settings(max_examples=60)
def test_counters_of_those_who_wait_stay_within_one_charge(data):
    """Theorem 4.4 of the paper, of charges: however tenants come and go."""
    turns, most, number = Turns({}), 0.0, 0
    for _ in range(data.draw(st.integers(1, 60))):
        if len(turns) and data.draw(st.booleans()):
            turns.pop()
        else:
            charge, number = data.draw(CHARGES), number + 1
            most = max(most, charge)
            push(turns, data.draw(st.sampled_from(TENANTS)), number, charge)
        counters = [turns.counter(tenant) for tenant in TENANTS if turns.waiting_of(tenant)]
        if counters:
            assert max(counters) - min(counters) <= most + 1e-6


def served(requests, budget):
    """Charges that each tenant got while ``budget`` was served in all; everybody always waits."""
    turns, got = Turns({}), Counter()
    for tenant, charges in requests.items():
        for charge in charges:
            push(turns, tenant, charge, charge)
    while sum(got.values()) < budget:
        tenant, charge = turns.pop()
        got[tenant] += charge
    return got


@given(st.integers(1, 20), st.integers(1, 20))
def test_a_tenant_gains_nothing_by_splitting(size, parts):
    whole = served({"a": [float(size * parts)] * 100, "b": [10.0] * 4000}, 1000.0)
    split = served({"a": [float(size)] * (100 * parts), "b": [10.0] * 4000}, 1000.0)
    assert split["a"] <= whole["a"] + size * parts + 10.0


def test_who_was_away_saves_nothing_up():
    turns = Turns({})
    for _ in range(50):
        push(turns, "a", "x", 10.0)
    for _ in range(40):
        turns.pop()
    push(turns, "b", "y", 10.0)
    assert turns.counter("b") == turns.counter("a")
    names = []
    for number in range(10):
        push(turns, "b", f"y{number}", 10.0)
        names.append(turns.pop()[0])
    assert Counter(names) == {"a": 5, "b": 5}


def test_weights_are_shares():
    requests = {tenant: [1.0] * 1000 for tenant in TENANTS}
    turns, got = Turns(WEIGHTS), Counter()
    for tenant, charges in requests.items():
        for charge in charges:
            push(turns, tenant, charge, charge)
    for _ in range(700):
        got[turns.pop()[0]] += 1
    assert [got[tenant] for tenant in TENANTS] == pytest.approx([200, 400, 100], abs=2)


def test_a_priority_orders_a_tenants_own_requests_and_no_others():
    turns = Turns({})
    push(turns, "a", "late", 1.0)
    push(turns, "a", "bounded", 1.0, bounded=True)
    push(turns, "a", "urgent", 1.0, priority=5)
    push(turns, "b", "other", 1.0, priority=-5)
    assert [turns.pop()[1] for _ in range(4)] == ["urgent", "other", "bounded", "late"]


def test_what_is_ahead_is_own_work_and_what_others_are_owed():
    turns = Turns({})
    for number in range(10):
        push(turns, "heavy", number, 10.0)
    assert turns.ahead_s("heavy", 10.0) == 100.0
    assert turns.ahead_s("light", 10.0) == 10.0, "one of the other tenant's goes first"
    push(turns, "light", "x", 10.0)
    assert turns.ahead_s("light", 10.0) == 30.0


def test_a_longer_answer_than_expected_is_paid_for():
    turns = Turns({})
    push(turns, "a", 1, 10.0)
    push(turns, "b", 1, 10.0)
    turns.pop()
    turns.settle("a", 100.0)
    for number in range(5):
        push(turns, "a", number, 10.0)
        push(turns, "b", number, 10.0)
    assert [turns.pop()[0] for _ in range(6)] == ["b"] * 6


@given(st.lists(st.tuples(st.sampled_from(TENANTS), CHARGES), max_size=20), st.data())
def test_what_is_removed_never_comes(pushes, data):
    turns = Turns({})
    for number, (tenant, charge) in enumerate(pushes):
        push(turns, tenant, number, charge)
    removed = data.draw(st.sets(st.integers(0, max(0, len(pushes) - 1))))
    gone = {n for n in removed if n < len(pushes) and turns.remove(pushes[n][0], n)}
    assert gone == {n for n in removed if n < len(pushes)}
    assert not any(turns.remove(pushes[n][0], n) for n in gone)
    assert len(turns) == len(pushes) - len(gone)
    assert {turns.pop()[1] for _ in range(len(turns))} == set(range(len(pushes))) - gone
    assert turns.peek() is None
    assert turns.longest() is None


def test_what_waits_is_added_up_over_tenants():
    turns = Turns({})
    turns.push("a", "first", (10.0, 0.25), (0, True))
    turns.push("b", "second", (10.0, 0.5), (0, True))
    assert turns.waiting_s == 0.75
    turns.pop()
    assert turns.waiting_s in (0.25, 0.5)
    turns.pop()
    assert turns.waiting_s == 0.0
