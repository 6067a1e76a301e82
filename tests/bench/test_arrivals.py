"""Arrivals are ordered, seeded, and as frequent as asked."""

import pytest

from bench.arrivals import burst, poisson, uniform


def test_uniform_is_evenly_spaced():
    assert uniform(4, 2.0) == (0.0, 0.5, 1.0, 1.5)


@pytest.mark.parametrize("seed", [1, 7, 17])
def test_poisson_is_seeded_ordered_and_has_its_rate(seed):
    times = poisson(4001, 20.0, seed)
    assert times == poisson(4001, 20.0, seed)
    assert times != poisson(4001, 20.0, seed + 1)
    assert times[0] == 0.0
    assert list(times) == sorted(times)
    assert times[-1] / 4000 == pytest.approx(1 / 20.0, rel=0.06)


def test_burst_comes_in_groups():
    assert burst(7, 3, 0.5) == (0.0, 0.0, 0.0, 0.5, 0.5, 0.5, 1.0)


@pytest.mark.parametrize(
    "call", [lambda: uniform(0, 1.0), lambda: poisson(1, 0.0, 1), lambda: burst(1, 0, 1.0)]
)
def test_nonsense_is_refused(call):
    with pytest.raises(ValueError, match=r"count|rate|size"):
        call()
