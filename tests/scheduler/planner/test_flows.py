from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.planner.flows import QUANTA, balanced, coupled
from scheduler.planner.search import role_sets
from triptych.core.lifecycle import Stage

SPEED = {stage: st.floats(0.5, 50.0) for stage in Stage}


@st.composite
def capacities(draw):
    roles = draw(st.sampled_from(role_sets()))
    speed = {stage: draw(SPEED[stage]) for stage in Stage}
    counts = [draw(st.integers(1, 8)) for _ in roles]
    return [
        {stage: count * speed[stage] for stage in Stage if stage in role}
        for role, count in zip(roles, counts, strict=True)
    ]


def busiest(capacity, shares):
    return max(
        sum(shares[stage][index] / able for stage, able in one.items())
        for index, one in enumerate(capacity)
    )


def least_busy(capacity):
    """No division can be better: Hall's condition over sets of stages, for pools whose instances
    are all alike (capacity = count x speed of the stage)."""
    speed = {}
    for one in capacity:
        for stage, able in one.items():
            speed.setdefault(stage, able)
    counts = [next(able / speed[stage] for stage, able in one.items()) for one in capacity]
    bounds = []
    for size in (1, 2, 3):
        for stages in combinations(Stage, size):
            work = sum(1.0 / speed[stage] for stage in stages)
            pools = [i for i, one in enumerate(capacity) if set(stages) & set(one)]
            bounds.append(work / sum(counts[i] for i in pools))
    return max(bounds)


@given(capacity=capacities())
def test_all_work_is_given_to_those_that_can_do_it(capacity):
    shares = balanced(capacity)
    for stage in Stage:
        assert sum(shares[stage]) == pytest.approx(1.0)
        assert all(
            share == 0.0 or stage in one for share, one in zip(shares[stage], capacity, strict=True)
        )


def test_pools_that_share_a_stage_are_equally_busy():
    e, p, d = Stage
    one = {e: 10.0, p: 5.0, d: 20.0}
    capacity = [{each: 2 * able for each, able in one.items()}, {p: 15.0, d: 60.0}, {e: 10.0}]
    shares = balanced(capacity)
    assert busiest(capacity, shares) <= least_busy(capacity) * 1.1 + 2 / QUANTA / 5.0


marginals = st.lists(st.integers(0, 9), min_size=3, max_size=3).filter(any)


@given(first=marginals, second=marginals)
def test_a_coupling_has_both_margins_and_stays_as_often_as_it_can(first, second):
    one = [each / sum(first) for each in first]
    other = [each / sum(second) for each in second]
    joint = coupled(one, other)
    for index in range(3):
        row = sum(share for (i, _), share in joint.items() if i == index)
        column = sum(share for (_, j), share in joint.items() if j == index)
        assert row == pytest.approx(one[index], abs=1e-9)
        assert column == pytest.approx(other[index], abs=1e-9)
        assert joint.get((index, index), 0.0) == pytest.approx(min(one[index], other[index]))
