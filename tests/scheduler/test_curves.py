"""Curves and their sums."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.curves import Curve, line, rising, thinned
from triptych.core.errors import ConfigError

BENT = Curve((10.0, 20.0, 50.0), (1.0, 3.0, 2.0))


def test_level_before_straight_between_and_on_beyond():
    assert [BENT.at(x) for x in (0, 10, 15, 20, 35, 50, 80)] == [1, 1, 2, 3, 2.5, 2, 1]
    assert Curve().at(7.0) == 0.0
    assert Curve((5.0,), (2.0,)).at(9.0) == 2.0
    assert line(1.0, 0.5).at(6.0) == 4.0


@given(
    start=st.integers(0, 80),
    stride=st.integers(0, 40),
    count=st.integers(0, 60),
    curve=st.sampled_from([BENT, Curve(), Curve((5.0,), (2.0,)), line(1.0, 0.5)]),
)
def test_a_sum_over_steps_is_the_sum(start, stride, count, curve):
    slow = sum(curve.at(start + i * stride) for i in range(count))
    assert curve.total(start, stride, count) == pytest.approx(slow, rel=1e-12, abs=1e-12)


def test_a_sum_over_a_thousand_million_steps_is_as_quick_as_over_ten():
    assert line(0.0, 2.0).total(0.0, 1.0, 10**9) == pytest.approx((10**9 - 1) * 10**9)


def test_thinning_keeps_within_its_tolerance():
    random = Random(3)
    points = [(float(x), 5.0 + x**0.5 + random.uniform(0, 0.2)) for x in range(1, 400)]
    curve = thinned(points, 0.03)
    assert len(curve.xs) < 40
    assert max(abs(curve.at(x) / y - 1.0) for x, y in points) <= 0.03


def test_a_rising_curve_pools_what_falls():
    curve = rising([(4.0, 9.0), (1.0, 1.0), (2.0, 4.0), (3.0, 1.0), (4.0, 4.0)])
    assert curve.xs == (1.0, 2.0, 3.0, 4.0)
    assert curve.ys == pytest.approx((1.0, 2.0, 2.0, 6.0))


def test_points_must_rise_and_pair_up():
    with pytest.raises(ConfigError, match="rise"):
        Curve((1.0, 1.0), (2.0, 3.0))
    with pytest.raises(ConfigError, match="1 xs and 0 ys"):
        Curve((1.0,), ())
