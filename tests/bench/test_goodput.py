"""Crossings, intervals and the search for a rate."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.goodput import Bisection, Point, bootstrap, crossing, over_seeds


def curve(*pairs):
    return [Point(*pair) for pair in pairs]


def test_between_the_last_good_and_the_first_bad():
    found = crossing(curve((1, 1.0), (2, 0.95), (4, 0.85), (8, 0.1)), 0.9)
    assert (found.kind, found.good, found.bad) == ("crossed", 2, 4)
    assert found.rate == pytest.approx(3.0)
    assert found.is_monotone


def test_a_curve_that_comes_back_says_so():
    found = crossing(curve((1, 1.0), (2, 0.8), (3, 0.95), (4, 0.85)), 0.9)
    assert found.rate == pytest.approx(1.5), "the first crossing is the goodput"
    assert found.last == pytest.approx(3.5)
    assert not found.is_monotone
    again = crossing(curve((1, 1.0), (2, 0.8), (3, 0.95)), 0.9)
    assert (again.kind, again.last) == ("crossed", 3)


def test_bounds_where_there_is_no_crossing():
    above = crossing(curve((1, 1.0), (2, 0.9)), 0.9)
    assert (above.kind, above.rate, above.is_monotone) == ("above", 2, True)
    below = crossing(curve((1, 0.5), (2, 0.2)), 0.9)
    assert (below.kind, below.rate, below.bad, below.is_monotone) == ("below", 0.0, 1, True)
    returns = crossing(curve((1, 0.5), (2, 0.95), (3, 0.5)), 0.9)
    assert returns.kind == "below" and returns.last > 2 and not returns.is_monotone
    with pytest.raises(ValueError, match="points"):
        crossing([], 0.9)


def test_few_values_are_resampled_exactly():
    found = bootstrap([1.0, 2.0, 3.0])
    assert (found.mean, found.low, found.high) == (2.0, 1.0, 3.0)
    assert bootstrap([5.0]).low == bootstrap([5.0]).high == 5.0
    many = bootstrap([float(n % 10) for n in range(100)])
    assert 3.7 < many.low < 4.5 < many.high < 5.3
    assert many == bootstrap([float(n % 10) for n in range(100)]), "equal seeds, equal intervals"
    with pytest.raises(ValueError, match="values"):
        bootstrap([])


def test_goodput_over_seeds():
    found = over_seeds([curve((1, 1.0), (2, 0.8)), curve((1, 1.0), (3, 0.8))], 0.9)
    assert found.mean == pytest.approx((1.5 + 2.0) / 2)


@settings(max_examples=200, deadline=None)
@given(st.floats(0.01, 500.0), st.floats(0.01, 500.0), st.floats(0.01, 0.2))
def test_bisection_finds_a_sharp_edge(edge, start, tolerance):
    search = Bisection(start, tolerance=tolerance)
    found = search.run(lambda rate: 1.0 if rate <= edge else 0.0)
    assert found.kind == "crossed"
    assert found.good <= edge < found.bad
    assert found.bad - found.good <= tolerance * found.good + 1e-9
    assert len(search.points) < 40


def test_bisection_ends_at_its_limits():
    assert Bisection(1.0, limits=(0.5, 8.0)).run(lambda _: 1.0).kind == "above"
    assert Bisection(1.0, limits=(0.5, 8.0)).run(lambda _: 0.0).kind == "below"
    with pytest.raises(ValueError, match="start"):
        Bisection(0.1, limits=(0.5, 8.0))
