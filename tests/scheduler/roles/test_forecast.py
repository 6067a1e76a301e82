import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.roles.forecast import Series


def seen(values, step_s=5.0):
    series = Series()
    for index, value in enumerate(values):
        series.see(value, index * step_s)
    return series


@given(value=st.floats(0.0, 1e6), number=st.integers(1, 200))
def test_a_constant_is_forecast_as_it_is(value, number):
    series = seen([value] * number)
    assert series.mean(30.0) == pytest.approx(value)
    assert series.burst(30.0, 3.0) == pytest.approx(value)


@given(values=st.lists(st.floats(0.0, 1e5), max_size=40), ahead=st.floats(0.0, 600.0))
def test_a_rate_is_never_negative(values, ahead):
    series = seen(values)
    assert series.mean(ahead) >= 0.0
    assert series.burst(ahead, 2.0) >= series.mean(ahead)


def test_one_window_that_is_odd_is_not_believed():
    series = seen([100.0] * 40 + [1000.0])
    assert series.mean(5.0) < 115.0


def test_two_of_them_are_a_change():
    series = seen([100.0] * 40 + [1000.0] * 2)
    assert series.mean(5.0) > 250.0
    assert seen([100.0] * 40 + [1000.0] * 12).mean(30.0) > 900.0


def test_a_trend_goes_on_and_fades():
    series = seen([100.0 + 2.0 * index for index in range(60)])
    last = 100.0 + 2.0 * 59
    assert last < series.mean(30.0) < last + 2.0 * 30.0 / 5.0 + 5.0
    assert series.mean(10_000.0) - series.mean(300.0) < 1.0


def test_bursts_widen_what_is_expected():
    source = random.Random(1)
    calm, wild = (
        seen([max(0.0, 100.0 + source.gauss(0, deviation)) for _ in range(200)])
        for deviation in (5.0, 40.0)
    )
    assert calm.burst(30.0, 1.0) - calm.mean(30.0) == pytest.approx(5.0, rel=0.5)
    assert wild.burst(30.0, 1.0) - wild.mean(30.0) == pytest.approx(40.0, rel=0.5)


def test_equal_times_count_once():
    series = seen([100.0] * 5)
    series.see(1e9, 20.0)
    assert series.mean(5.0) == pytest.approx(100.0)


def test_nothing_seen_is_nothing_expected():
    assert Series().mean(10.0) == Series().burst(10.0, 5.0) == 0.0
