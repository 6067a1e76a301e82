import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.planner.bisect import Which, highest, highest_over_seeds, student_t
from triptych.core.errors import ConfigError


def below(limit):
    return lambda number: number <= limit


def pieces(*ranges):
    """Holds inside the ranges: a question that is not monotone."""
    return lambda number: any(low <= number <= high for low, high in ranges)


@given(limit=st.floats(0.0, 100.0), tolerance=st.sampled_from([10.0, 1.0, 0.01]))
def test_a_monotone_question_is_answered_to_the_tolerance(limit, tolerance):
    found = highest(below(limit), 0.0, 128.0, tolerance)
    assert found.value <= limit < found.above
    assert found.above - found.value <= tolerance
    assert (found.num_crossings, found.is_met, found.is_capped) == (1, True, False)


def test_it_asks_as_seldom_as_bisection_can_and_nothing_twice():
    asked = []
    found = highest(lambda number: asked.append(number) or number <= 37.0, 0.0, 128.0, 1.0)
    assert len(asked) == len(set(asked)) == 2 + 7
    assert [number for number, _ in found.asked] == sorted(asked)


def test_held_nowhere():
    found = highest(below(-1.0), 0.5, 8.0, 0.1)
    assert (found.value, found.is_met, found.num_crossings) == (0.5, False, 0)


def test_held_everywhere():
    found = highest(below(9.0), 0.5, 8.0, 0.1)
    assert (found.value, found.above, found.is_capped) == (8.0, math.inf, True)
    assert found.num_crossings == 0


def test_the_first_no_ends_the_search_from_below():
    """A simulation of an overloaded system is the dearest one: it is run once."""
    asked = []
    highest(lambda number: asked.append(number) or number <= 3.0, 0.0, 16.0, 4.0, num_probes=5)
    assert max(asked) == 4.0


ISLANDS = pieces((0.0, 2.3), (4.7, 6.1), (9.0, 9.4))


def test_first_and_last_crossing_of_a_question_that_is_not_monotone():
    first = highest(ISLANDS, 0.0, 10.0, 0.01, num_probes=21)
    last = highest(ISLANDS, 0.0, 10.0, 0.01, which=Which.LAST, num_probes=21)
    assert first.value == pytest.approx(2.3, abs=0.01)
    assert last.value == pytest.approx(9.4, abs=0.01)
    assert (first.which, last.which) == (Which.FIRST, Which.LAST)


def test_more_crossings_than_one_are_told_where_they_were_seen():
    asked = highest(ISLANDS, 0.0, 10.0, 0.01, which=Which.LAST, num_probes=21)
    assert asked.num_crossings == 1, "from above, the first yes ends the search"
    dip = pieces((0.0, 3.0), (3.6, 10.0))
    found = highest(dip, 0.0, 8.0, 0.1, which=Which.LAST, num_probes=3)
    assert found.is_capped
    assert highest(dip, 0.0, 8.0, 0.1, num_probes=21).value == pytest.approx(3.0, abs=0.1)


def test_a_first_crossing_needs_the_low_end():
    found = highest(pieces((2.0, 4.0)), 0.0, 8.0, 0.1, num_probes=9)
    assert not found.is_met
    assert found.value == 0.0
    last = highest(pieces((2.0, 4.0)), 0.0, 8.0, 0.1, which=Which.LAST, num_probes=9)
    assert last.value == pytest.approx(4.0, abs=0.1)


@given(
    edges=st.lists(st.integers(1, 99), min_size=2, max_size=8, unique=True),
    which=st.sampled_from(Which),
    probes=st.integers(2, 12),
)
def test_whatever_is_found_was_seen(edges, which, probes):
    """A crossing that is told is a true one, however odd the question."""
    edges.sort()
    holds = pieces(*zip(edges[::2], edges[1::2], strict=False))
    found = highest(holds, 0.0, 100.0, 0.05, which=which, num_probes=probes)
    if found.is_met and not (which is Which.FIRST and not found.asked[0][1]):
        assert holds(found.value)
    if found.num_crossings and not found.is_capped and found.value < found.above:
        assert not holds(found.above)
        assert found.above - found.value <= 0.05


@pytest.mark.parametrize(
    "arguments", [(1.0, 1.0, 0.1), (2.0, 1.0, 0.1), (0.0, math.inf, 0.1), (0.0, 1.0, 0.0)]
)
def test_ranges_that_cannot_be(arguments):
    with pytest.raises(ConfigError):
        highest(below(1.0), *arguments)


def test_one_probe_is_none():
    with pytest.raises(ConfigError, match="num_probes"):
        highest(below(1.0), 0.0, 1.0, 0.1, num_probes=1)


def search(is_met):
    return highest(is_met, 0.0, 20.0, 0.001)


def noisy(mean, deviation):
    """Attainment whose crossing differs by seed, as a simulation's does."""
    return lambda number, seed: number <= mean + deviation * random.Random(seed).gauss(0, 1)


def test_a_noisy_oracle_is_searched_seed_by_seed():
    found = highest_over_seeds(noisy(10.0, 0.5), (1, 2, 3, 4, 5), search)
    assert len(found.crossings) == 5
    assert found.low < found.mean < found.high
    assert found.mean == pytest.approx(sum(one.value for one in found.crossings) / 5)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    trials = [
        highest_over_seeds(noisy(10.0, 1.0), range(7 * n, 7 * n + 7), search, 0.9)
        for n in range(400)
    ]
    share = sum(one.low <= 10.0 <= one.high for one in trials) / len(trials)
    assert 0.86 <= share <= 0.94


def test_more_seeds_make_it_narrower():
    few, many = (highest_over_seeds(noisy(10.0, 1.0), range(n), search) for n in (4, 64))
    assert many.high - many.low < (few.high - few.low) / 2


def test_one_seed_says_nothing_of_its_error():
    found = highest_over_seeds(noisy(10.0, 1.0), (3,), search)
    assert (found.low, found.high) == (-math.inf, math.inf)


@pytest.mark.parametrize("seeds", [(), (1, 1)])
def test_seeds_that_cannot_be(seeds):
    with pytest.raises(ConfigError, match="seeds"):
        highest_over_seeds(noisy(10.0, 1.0), seeds, search)


# Published tables of Student's t, two-sided.
T = {(0.95, 1): 12.7062, (0.95, 2): 4.3027, (0.95, 3): 3.1824, (0.95, 4): 2.7764, (0.95, 9): 2.2622,
     (0.95, 29): 2.0452, (0.99, 3): 5.8409, (0.99, 10): 3.1693, (0.9, 5): 2.0150}  # fmt: skip


@pytest.mark.parametrize(("confidence", "degrees"), T)
def test_students_t(confidence, degrees):
    assert student_t(confidence, degrees) == pytest.approx(T[confidence, degrees], rel=1e-4)


@pytest.mark.parametrize("arguments", [(0.0, 3), (1.0, 3), (0.95, 0)])
def test_no_interval(arguments):
    with pytest.raises(ConfigError):
        student_t(*arguments)
