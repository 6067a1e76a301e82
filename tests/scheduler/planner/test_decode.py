import math
import random
from statistics import fmean, pvariance

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.planner.decode import Interruptions, Steps, settle
from scheduler.planner.demand import Moments
from tests.scheduler.table import TABLE

COSTS = TABLE.Roofline()
STEPS = Steps(COSTS, 1300.0, (0, 1024), 256)


@given(batch=st.integers(1, 256))
def test_steps_are_those_of_the_costs(batch):
    exact = COSTS.language_s((), batch, round(batch * 1300))
    assert STEPS.alone_s(batch) == pytest.approx(exact, rel=0.01)


@given(limit=st.floats(0.001, 0.05))
def test_the_largest_batch_is_the_largest(limit):
    found = STEPS.largest(limit)
    assert 1 <= found <= 256
    assert found == 1 or STEPS.alone_s(found) <= limit
    assert found == 256 or STEPS.alone_s(found + 1) > limit


@given(rate=st.floats(1.0, 20_000.0))
def test_littles_law_holds(rate):
    found = settle(STEPS, rate, Interruptions(), 256.0)
    if not math.isinf(found.batch):
        assert found.batch == pytest.approx(rate * found.token_s, rel=1e-3, abs=2e-3)
        assert found.token_s == found.step_s
        assert found.load == found.scatter_s == 0.0


def test_more_tokens_than_the_largest_batch_makes_do_not_settle():
    most = 256 / STEPS.alone_s(256)
    assert settle(STEPS, 0.97 * most, Interruptions(), 256.0).batch < 256
    assert math.isinf(settle(STEPS, 1.03 * most, Interruptions(), 256.0).batch)


def test_interruptions_that_fill_the_time_do_not_settle():
    others = Interruptions(encode_rate=10.0, encode=Moments(0.1, 0.01))
    assert math.isinf(settle(STEPS, 1.0, others, 256.0).batch)


@given(rate=st.floats(1.0, 5_000.0), more=st.floats(0.0, 1.0))
def test_interruptions_only_slow(rate, more):
    others = Interruptions(encode_rate=more / 0.05, encode=Moments(0.05, 0.0025))
    alone, beside = (settle(STEPS, rate, each, 256.0) for each in (Interruptions(), others))
    assert beside.token_s >= alone.token_s - 1e-12


def test_an_answer_under_interruptions_is_a_delay_busy_period():
    """Mean and variance against a simulation: t seconds of own work, during all of which, and
    during the interruptions themselves, others come."""
    load, own_s, each_s = 0.4, 5.0, 0.2
    rate = load / each_s
    others = Interruptions(encode_rate=rate, encode=Moments(each_s, each_s**2))
    found = settle(STEPS, 10.0, others, 256.0)
    source = random.Random(5)
    times = []
    for _ in range(20_000):
        seconds, left, arrival = 0.0, own_s, source.expovariate(rate)
        while left > 0.0:
            if arrival < left:
                seconds += arrival
                left += each_s - arrival
                arrival = source.expovariate(rate)
            else:
                seconds += left
                arrival -= left
                left = 0.0
        times.append(seconds)
    assert fmean(times) == pytest.approx(own_s / (1 - found.load), rel=0.01)
    assert pvariance(times) == pytest.approx(own_s * found.scatter_s, rel=0.05)


def test_chunks_that_share_steps_with_decodes_cost_them_less_than_their_own_time():
    """Sarathi-Serve: the weights are read once for both."""
    chunk_s = COSTS.language_s(((0, 1024),), 0, 0)
    one = Moments(chunk_s, chunk_s**2)
    shared = Interruptions(
        prefill_rate=10.0, prefill=one, chunks=Moments(1.0, 1.0), prefill_chunks=chunk_s
    )
    apart = Interruptions(encode_rate=10.0, encode=one)
    shared, apart = (settle(STEPS, 2000.0, each, 256.0) for each in (shared, apart))
    assert 0.0 < shared.load < apart.load
    assert shared.token_s < apart.token_s
