"""Baselines of batching and order, by hand."""

import pytest

from scheduler.batching import fcfs, sarathi, splitfuse
from scheduler.fairness import SHARE
from scheduler.mlfq import NUM_LEVELS, QUANTUM_S, Mlfq
from scheduler.prior import Prior
from tests.scheduler import drawn
from tests.scheduler.drawn import chunk, decode, waiting
from triptych.engine.policies import START, Budget, Moment

COSTS = Prior(step_s=0.0, token_s=0.01, pair_s=0.0)


def step(policy, ready, tokens, moment=START):
    chosen = policy(ready, Budget(tokens, 99, 0), moment)
    return [(ready[index].arrival, ready[index].start) for index in chosen]


def test_orca_serves_in_order_of_arrival():
    ready = [chunk(0, 0, 8), decode(1), chunk(2, 0, 4), decode(3)]
    assert step(fcfs, ready, 14) == [(1, 50), (3, 50), (0, 0), (2, 0)]
    assert step(fcfs, ready, 12) == [(1, 50), (3, 50), (0, 0)]
    assert step(fcfs, ready, 8) == [(0, 0)]


def test_sarathi_ends_what_was_begun():
    ready = [chunk(0, 0, 8), chunk(1, 8, 16, served_s=0.1), decode(2)]
    assert step(sarathi, ready, 10) == [(2, 50), (1, 8)]
    assert step(sarathi, ready, 17) == [(2, 50), (0, 0), (1, 8)]


def test_splitfuse_fills_its_step():
    ready = [decode(0), chunk(1, 0, 8, 16), chunk(1, 8, 16), chunk(2, 0, 3), chunk(3, 0, 2)]
    assert step(sarathi, ready, 13) == [(0, 50), (1, 0)]
    assert step(splitfuse, ready, 13) == [(0, 50), (1, 0), (2, 0)]
    assert step(splitfuse, ready, 14) == [(0, 50), (1, 0), (2, 0), (3, 0)]


@pytest.mark.parametrize("policy", [sarathi, splitfuse])
def test_an_owed_turn_goes_before_decodes(policy):
    ready = [decode(0), decode(1), chunk(2, 0, 8, passed=3), chunk(3, 0, 8, passed=4)]
    assert step(policy, ready, 8, Moment(0.0, SHARE - 1)) == [(3, 0)]
    assert step(policy, ready, 8, Moment(0.0, SHARE)) == [(0, 50), (1, 50)]


def test_mlfq_joins_where_the_quantum_covers_the_prefill():
    policy = Mlfq(COSTS)
    assert policy.level(waiting(0, 1)) == policy.level(waiting(0, 2)) == 0
    assert policy.level(waiting(0, 3)) == policy.level(waiting(0, 4)) == 1
    assert policy.level(waiting(0, 5)) == 2
    assert policy.level(waiting(0, 10**6)) == NUM_LEVELS - 1


@pytest.mark.parametrize(("size", "enters"), [(2, 0), (4, 1), (5, 2)])
def test_mlfq_sinks_with_every_quantum(size, enters):
    policy, used_s = Mlfq(COSTS), 0.0
    for level in range(enters, NUM_LEVELS - 1):
        used_s += QUANTUM_S * 2**level
        assert policy.level(waiting(0, size, served_s=used_s - 1e-6)) == level
        assert policy.level(waiting(0, size, served_s=used_s + 1e-6)) == level + 1


def test_mlfq_lets_a_new_short_job_go_before_an_old_decode():
    policy = drawn.batching("mlfq", COSTS)
    ready = [decode(0, served_s=1.0), chunk(1, 0, 2), decode(2, served_s=0.0)]
    assert step(policy, ready, 3) == [(2, 50), (1, 0)]


def test_edf_takes_what_is_due_first():
    policy = drawn.batching("edf")
    ready = [decode(0, due_s=9.0), chunk(1, 0, 4, due_s=5.0), decode(2, due_s=1.0)]
    assert step(policy, ready, 5) == [(2, 50), (1, 0)]
    assert step(policy, [chunk(0, 0, 4, due_s=1.0), chunk(1, 0, 4, priority=1)], 4) == [(1, 0)]
    assert step(policy, [chunk(0, 0, 4, due_s=9.0), chunk(1, 0, 4, end_s=8.0)], 4) == [(1, 0)]
