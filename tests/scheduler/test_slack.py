"""Least slack over all remaining stages, by hand: who goes before whom, and why."""

import math

import pytest

from scheduler.batching import PATIENCE
from scheduler.prior import Prior
from scheduler.slack import IN_HAND, MARGIN
from tests.scheduler import drawn
from tests.scheduler.drawn import chunk, decode, visual, waiting
from triptych.engine.policies import Budget, Moment

COSTS = Prior(step_s=0.0, token_s=0.01, pair_s=0.0, decode_s=0.0, context_s=0.0,
              vision_step_s=0.0, vision_token_s=0.01)  # fmt: skip
"""A token of prefill or of a picture takes 10 ms, a decode nothing."""
NOW = Moment(drawn.NOW_S, 0)
S = drawn.NOW_S


def admitted(*work, policy="slack"):
    return [work[index].arrival for index in drawn.order(policy, COSTS)(work, NOW)]


def step(*ready, tokens=100, passed_over=0, costs=COSTS, moment=NOW):
    budget = Budget(tokens, len(ready), passed_over)
    chosen = drawn.batching("slack", costs)(ready, budget, moment)
    return [(ready[index].arrival, ready[index].start) for index in chosen]


def test_slack_is_what_is_left_less_what_is_to_be_done():
    long = waiting(0, 100, due_s=S + 1.5)
    short = waiting(1, 10, due_s=S + 1.0)
    assert admitted(short, long) == [0, 1]
    assert admitted(short, long, policy="edf") == [1, 0]
    cached = waiting(0, 100, due_s=S + 1.5, hit=90)
    assert admitted(short, cached) == [1, 0]


def test_later_stages_count_as_far_as_a_gap_does_not_cover_them():
    plain = waiting(0, 10, due_s=S + 1.0)
    far = waiting(1, 10, due_s=S + 1.2, later_s=0.5, tpot_s=0.1)
    near = waiting(1, 10, due_s=S + 1.2, later_s=0.2, tpot_s=0.1)
    assert admitted(plain, far) == [1, 0]
    assert admitted(plain, near) == [0, 1]
    unbounded = waiting(1, 10, due_s=S + 1.2, later_s=9.0)
    assert admitted(plain, unbounded) == [0, 1]


def test_who_is_too_late_goes_behind_those_that_can_make_it():
    late = waiting(0, 100, due_s=S + 0.9)
    later = waiting(1, 10, due_s=S - 5.0)
    good = waiting(2, 10, due_s=S + 50.0)
    assert admitted(late, later, good) == [2, 0, 1]
    first = waiting(3, 100, due_s=S - 1.0, priority=1)
    assert admitted(late, good, first) == [3, 2, 0]


def test_without_a_bound_the_deadline_counts():
    batch = waiting(0, 10, end_s=S + 60.0)
    bound = waiting(1, 10, due_s=S + 2.0)
    assert admitted(batch, bound) == [1, 0]
    assert admitted(waiting(0, 10, end_s=S + 1.0), bound) == [0, 1]


def test_kv_from_elsewhere_is_no_work():
    inbound = waiting(0, 1000, due_s=S + 1.0, prefill_tokens=0)
    assert admitted(inbound, waiting(1, 50, due_s=S + 1.0)) == [1, 0]


def test_decodes_that_owe_a_token_go_first():
    owing = [decode(index, due_s=S + 0.05, tpot_s=0.1) for index in range(3)]
    assert step(*owing, chunk(9, 0, 3, due_s=S + 0.04), tokens=3) == [(0, 50), (1, 50), (2, 50)]


def test_decodes_ahead_of_their_time_stand_back_for_prefill_that_cannot_wait():
    tpot_s = 0.1
    ahead = [decode(i, due_s=S + IN_HAND * tpot_s, tpot_s=tpot_s) for i in range(3)]
    pressing, calm = chunk(9, 0, 3, due_s=S + 0.04), chunk(9, 0, 3, due_s=S + 9.0)
    assert step(*ahead, pressing, tokens=4) == [(0, 50), (9, 0)]
    assert step(*ahead, calm, tokens=4) == [(0, 50), (1, 50), (2, 50)]
    assert step(*ahead, calm, tokens=6) == [(0, 50), (1, 50), (2, 50), (9, 0)]


def test_a_step_ends_before_a_token_is_due():
    """20 tokens of prefill take 0.2 s."""
    pieces = [chunk(9, start, start + 10, 40, due_s=S + 99.0) for start in range(0, 40, 10)]
    free = decode(0, due_s=S + 9.0, tpot_s=0.1)
    assert step(free, *pieces) == [(0, 50), (9, 0), (9, 10), (9, 20), (9, 30)]
    bound = decode(1, due_s=S + 0.25, tpot_s=0.1)
    assert step(free, bound, *pieces) == [(0, 50), (1, 50), (9, 0), (9, 10)]


@pytest.mark.parametrize("due_s", [-math.inf, S - 3.0, S])
def test_a_decode_that_is_late_catches_up(due_s):
    late = decode(1, due_s=due_s, tpot_s=0.1)
    short, long = MARGIN * 0.1 - 0.001, MARGIN * 0.1 + 0.001
    for seconds, taken in ((short, [(1, 50), (9, 0)]), (long, [(1, 50)])):
        costs = Prior(step_s=0.0, token_s=seconds / 5, pair_s=0.0, decode_s=0.0, context_s=0.0)
        assert step(late, chunk(9, 0, 5), costs=costs) == taken


def test_prefill_goes_on_beside_decodes_that_leave_it_no_time():
    ready = decode(1, due_s=S, tpot_s=0.01), chunk(9, 0, 50), chunk(9, 50, 90)
    assert step(*ready, passed_over=PATIENCE - 1) == [(1, 50)]
    assert step(*ready, passed_over=PATIENCE) == [(1, 50), (9, 0)]


def test_pieces_of_a_sequence_stay_together_by_its_slack():
    first = [chunk(0, start, start + 10, 30, due_s=S + 2.0) for start in (0, 10, 20)]
    second = [chunk(1, start, start + 10, 20, due_s=S + 1.0) for start in (0, 10)]
    assert step(*first, *second, tokens=30) == [(0, 0), (1, 0), (1, 10)]


def pictures(*waiting, name="slack"):
    return [waiting[index].arrival for index in drawn.encode_order(name, COSTS)(waiting, NOW)]


def test_pictures_by_slack_over_encode_and_what_follows():
    one = visual(0, 10, due_s=S + 2.0)
    many = visual(1, 10, left=130, due_s=S + 3.0)
    assert pictures(many, one) == [1, 0]
    assert pictures(one, visual(1, 10, left=110, due_s=S + 3.0)) == [0, 1]
    assert pictures(one, visual(1, 10, due_s=S + 3.0, later_s=1.5)) == [1, 0]
    late, tight = visual(3, 10, due_s=S), visual(2, 900, due_s=S + 9.5)
    assert pictures(late, one, tight) == [2, 0, 3]


def test_windows_before_the_shortest_remaining():
    early = visual(0, 90, since_s=S + 0.01)
    short = visual(1, 10, since_s=S + 0.05)
    late = visual(2, 1, since_s=S + 0.11)
    assert pictures(early, short, late, name="twsrf") == [1, 0, 2]
    rest = visual(3, 10, left=200, since_s=S + 0.02)
    assert pictures(early, rest, short, name="twsrf") == [1, 0, 3]
