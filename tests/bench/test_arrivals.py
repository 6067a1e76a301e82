"""Arrivals are ordered, seeded, and as frequent and as bursty as asked."""

import math
import random
from itertools import islice, pairwise

import pytest

from bench.arrivals import (
    Gamma,
    Piece,
    Poisson,
    Rates,
    Uniform,
    Weibull,
    burst,
    flow,
    gaps,
    poisson,
    replay,
    times,
    uniform,
)
from triptych.core.errors import ConfigError

STEADY = Rates(((0.0, 20.0),))
PROCESSES = [
    (Poisson(), 1.0),
    (Gamma(0.25), 2.0),
    (Gamma(4.0), 0.5),
    (Weibull(0.7), 1.462),
    (Weibull(2.0), 0.523),
]
"""With their coefficients of variation: 1/sqrt(shape), and by the Gamma function."""


def draw(process, rates=STEADY, duration_s=2000.0, seed=1, batch=1):
    return list(times(process, rates, duration_s, random.Random(f"test {seed}"), batch))


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


@pytest.mark.parametrize(("process", "cv"), PROCESSES)
def test_a_process_is_seeded_ordered_and_has_its_rate_and_spread(process, cv):
    found = draw(process)
    assert found == draw(process)
    assert found != draw(process, seed=2)
    assert found == sorted(found)
    assert 0 <= found[0] <= found[-1] < 2000
    expected = 40_000
    assert abs(len(found) - expected) < 4 * cv * math.sqrt(expected)
    steps = [end - start for start, end in pairwise(found)]
    mean = sum(steps) / len(steps)
    spread = math.sqrt(sum((step - mean) ** 2 for step in steps) / len(steps)) / mean
    assert spread == pytest.approx(cv, rel=0.05)


@pytest.mark.parametrize(("process", "cv"), [*PROCESSES, (Gamma(0.04), 5.0), (Weibull(0.35), 4.05)])
def test_a_short_stretch_has_its_rate_too(process, cv):
    """From its first second on the process is as it always was: ten are expected in half a second,
    where a bursty process that starts with a whole gap would offer (cv² - 1) / 2 more."""
    counts = [len(draw(process, duration_s=0.5, seed=seed)) for seed in range(3000)]
    mean = sum(counts) / len(counts)
    deviation = math.sqrt(sum((count - mean) ** 2 for count in counts) / len(counts))
    assert abs(mean - 10) < 4 * deviation / math.sqrt(len(counts))


def test_rates_change_over_time_and_come_again():
    rates = Rates(((0.0, 4.0), (10.0, 0.0), (20.0, 12.0)), period_s=30.0)
    found = draw(Poisson(), rates, 900.0)
    counts = [sum(low <= at % 30 < low + 10 for at in found) for low in (0, 10, 20)]
    assert counts[1] == 0
    for count, expected in zip(counts[::2], (1200, 3600), strict=True):
        assert abs(count - expected) < 4 * math.sqrt(expected)
    assert rates.mean(900.0) == pytest.approx(16 / 3)
    assert rates.mean(15.0, start_s=25.0) == pytest.approx((5 * 12 + 10 * 4) / 15)
    assert rates.scaled(2.0).mean(30.0) == pytest.approx(32 / 3)


def test_a_stretch_of_rates_starts_where_it_is_asked_to():
    rates = Rates(((0.0, 1.0), (10.0, 2.0)), period_s=15.0)
    assert list(rates.pieces(12.0, start_s=38.0)) == [(0, 2, 0), (2, 7, 1), (7, 12, 0)]


def test_a_gap_runs_at_the_rate_of_the_moment():
    """Uniform gaps are whole numbers on the process's clock: 10 at 2 a second, then one at 0.1."""
    rates = Rates(((0.0, 2.0), (5.0, 0.1), (15.0, 1.0)))
    assert draw(Uniform(), rates, 17.0) == pytest.approx(
        [*(index / 2 for index in range(10)), 5.0, 15.0, 16.0]
    )


def test_nothing_comes_where_nothing_is_offered():
    assert draw(Poisson(), Rates(((0.0, 0.0),))) == []
    assert draw(Poisson(), duration_s=0.0) == []
    assert list(flow([Piece(0.0, 1.0, 0.0, Poisson())], random.Random("none"))) == []


def test_batches_come_at_once_and_keep_the_rate():
    found = draw(Poisson(), batch=8)
    assert len(found) % 8 == 0
    assert all(len(set(found[at : at + 8])) == 1 for at in range(0, len(found), 8))
    assert abs(len(found) - 40_000) < 4 * math.sqrt(8 * 40_000)


@pytest.mark.parametrize(
    ("steps", "period_s"),
    [((), math.inf), (((1.0, 1.0),), math.inf), (((0.0, 1.0), (0.0, 2.0)), math.inf),
     (((0.0, -1.0),), math.inf), (((0.0, math.nan),), math.inf), (((0.0, 1.0), (9.0, 1.0)), 9.0)],
)  # fmt: skip
def test_rates_that_mean_nothing_are_refused(steps, period_s):
    with pytest.raises(ConfigError, match=r"rates|period_s"):
        Rates(steps, period_s)


@pytest.mark.parametrize(
    ("family", "cv", "shape", "field"),
    [
        ("normal", None, None, "arrivals"),
        ("poisson", 2.0, None, "cv"),
        ("weibull", 2.0, None, "cv"),
        ("uniform", None, 1.0, "shape"),
        ("gamma", 0.0, None, "cv"),
        ("gamma", 1.0, 1.0, "cv"),
        ("weibull", None, 1e9, "shape"),
        ("gamma", None, 0.0, "shape"),
    ],
)
def test_processes_that_do_not_exist_are_refused(family, cv, shape, field):
    with pytest.raises(ConfigError, match=f"^{field}: "):
        gaps(family, cv, shape)


def test_processes_have_names():
    assert gaps("poisson") == Poisson()
    assert gaps("uniform") == Uniform()
    assert gaps("gamma", cv=2.0) == Gamma(0.25)
    assert gaps("gamma", shape=3.0) == Gamma(3.0)
    assert gaps("weibull", shape=0.5) == Weibull(0.5)


TRACE = (100.0, 101.0, 101.0, 105.0, 106.0)


def test_a_trace_comes_at_its_own_times_and_begins_anew():
    assert list(replay(TRACE, None, 6.5)) == [(0, 0), (1, 1), (2, 1), (3, 5), (4, 6)]
    period = 6 * 5 / 4
    assert [at for _, at in replay(TRACE, None, 9.0)][5:] == [period, period + 1, period + 1]
    assert list(replay(TRACE, None, 4.0, start_s=2.0)) == [(3, 3.0)]
    assert next(replay(TRACE, None, 4.0, start_s=2 * period)) == (10, 0.0)


@pytest.mark.parametrize("rate", [0.5, 2.0, 10.0])
def test_a_trace_at_another_rate_keeps_its_spacing_and_offers_exactly_that(rate):
    found = list(replay(TRACE, rate, 8.0, start_s=1.0))
    assert len(found) == 8 * rate
    assert [index for index, _ in found] == list(range(1, 1 + len(found)))
    ats = [at for _, at in found]
    assert ats == sorted(ats)
    assert ats[-1] <= 8, "of two at one moment, one may lie just after the end"
    own = [at for _, at in islice(replay(TRACE, None, 1e9, start_s=1.0), len(found) + 1)]
    assert ats == pytest.approx([at * 8 / own[-1] for at in own[:-1]])


def test_a_trace_of_one_moment_comes_at_once():
    assert list(replay((5.0, 5.0), 1.0, 4.0)) == [(0, 0), (1, 0), (2, 2), (3, 2)]
