"""What every policy of order and batching keeps to, whatever it is shown.

Valid choices, budgets, no gap within a sequence, no dependence on the order of what is shown or on
earlier questions, and its turn for who waits longest. ``test_properties_engine`` shows the same in
real engines.
"""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.fairness import SHARE
from scheduler.order import MOST_OVERTAKEN
from scheduler.registry import policies
from tests.scheduler import drawn
from triptych.core.config import _CHOICES, EngineConfig
from triptych.engine.policies import Budget, Moment

every_batching = pytest.mark.parametrize("name", drawn.BATCHINGS)
every_order = pytest.mark.parametrize("name", drawn.ORDERS)
every_encode_order = pytest.mark.parametrize("name", drawn.ENCODE_ORDERS)

IN_ORDER = {"decode_first", "fcfs"}
"""Batchings in which nobody is overtaken by a younger one of its kind."""

budgets = st.builds(Budget, st.integers(1, 30), st.integers(1, 20), st.integers(0, 6))


def test_names_are_those_of_the_configuration():
    assert sorted(_CHOICES["engine.order"]) == drawn.ORDERS
    assert sorted(_CHOICES["engine.batching"]) == drawn.BATCHINGS
    assert sorted(_CHOICES["engine.encode_order"]) == drawn.ENCODE_ORDERS
    for name in drawn.BATCHINGS:
        assert policies(EngineConfig(batching=name)).batching is not None


def spans(ready, chosen):
    return [ready[index][:4] for index in chosen]


@every_batching
@given(ready=drawn.ready_work(), budget=budgets, moment=drawn.moments)
def test_a_step_is_within_its_budget_and_without_gaps(name, ready, budget, moment):
    chosen = list(drawn.batching(name)(ready, budget, moment))
    assert 1 <= len(chosen) == len(set(chosen)) <= budget.pieces
    work = [ready[index] for index in chosen]
    assert sum(each.end - each.start for each in work) <= budget.tokens or len(work) == 1
    kinds = [each.is_decode for each in work]
    assert kinds == sorted(kinds, reverse=True)
    for arrival in {each.arrival for each in work}:
        mine = sorted(each.start for each in ready if each.arrival == arrival)
        taken = [each.start for each in work if each.arrival == arrival]
        assert taken == mine[: len(taken)]


@every_batching
@given(ready=drawn.ready_work(), budget=budgets, moment=drawn.moments, seed=st.integers(0, 99))
def test_a_step_depends_on_nothing_but_what_is_shown(name, ready, budget, moment, seed):
    policy = drawn.batching(name)
    first = spans(ready, policy(ready, budget, moment))
    shuffled = random.Random(seed).sample(ready, len(ready))
    policy(shuffled[:1], budget, Moment(0.0, 3))
    assert spans(shuffled, policy(shuffled, budget, moment)) == first
    assert spans(ready, drawn.batching(name)(ready, budget, moment)) == first


@every_batching
@given(ready=drawn.ready_work(), moment=drawn.moments)
def test_where_there_is_room_for_all_and_no_gap_to_keep_all_are_taken(name, ready, moment):
    calm = [work._replace(due_s=float("inf"), claim=drawn.claim()) for work in ready]
    chosen = drawn.batching(name)(calm, Budget(1000, 100, 0), moment)
    assert sorted(chosen) == list(range(len(calm)))


@every_batching
@given(ready=drawn.ready_work(), budget=budgets, now=drawn.moments)
def test_an_owed_turn_goes_to_the_one_passed_over_most(name, ready, budget, now):
    if name in IN_ORDER:
        return check_nobody_is_overtaken(name, ready, budget, now)
    owed = now._replace(number=SHARE * (now.number + 1) - 1)
    chosen = drawn.batching(name)(ready, budget, owed)
    longest = min(ready, key=lambda each: (-each.num_passed_over, each.arrival))
    assert longest.arrival in {ready[index].arrival for index in chosen}
    return None


def check_nobody_is_overtaken(name, ready, budget, now):
    taken = set(drawn.batching(name)(ready, budget, now))
    out = [each for index, each in enumerate(ready) if index not in taken]
    for index in taken:
        mine = ready[index]
        older = [each for each in out if each.arrival < mine.arrival]
        assert not any(each.is_decode == mine.is_decode for each in older), "overtaken"


@every_order
@given(waiting=drawn.waiting_work(), moment=drawn.moments, seed=st.integers(0, 99))
def test_an_order_names_each_once_and_depends_on_nothing_else(name, waiting, moment, seed):
    policy = drawn.order(name)
    first = [waiting[index].job for index in policy(waiting, moment)]
    assert sorted(first) == sorted(work.job for work in waiting)
    shuffled = random.Random(seed).sample(waiting, len(waiting))
    assert [shuffled[index].job for index in policy(shuffled, moment)] == first
    assert [waiting[index].job for index in drawn.order(name)(waiting, moment)] == first


@every_order
@given(waiting=drawn.waiting_work(), moment=drawn.moments)
def test_an_owed_admission_goes_to_the_oldest(name, waiting, moment):
    owed = moment._replace(number=SHARE * (moment.number + 1) - 1)
    if name == "longest_prefix":
        waiting = [waiting[0]._replace(num_overtaken=MOST_OVERTAKEN), *waiting[1:]]
    assert drawn.order(name)(waiting, owed)[0] == 0


@every_encode_order
@given(waiting=drawn.visuals(), moment=drawn.moments, seed=st.integers(0, 99))
def test_pictures_are_each_named_once(name, waiting, moment, seed):
    policy = drawn.encode_order(name)
    first = [waiting[index].job for index in policy(waiting, moment)]
    assert sorted(first) == sorted(each.job for each in waiting)
    assert [waiting[index].job for index in drawn.encode_order(name)(waiting, moment)] == first
    if name != "fcfs":  # the engine's own order
        shuffled = random.Random(seed).sample(waiting, len(waiting))
        assert [shuffled[index].job for index in policy(shuffled, moment)] == first


@every_encode_order
@given(waiting=drawn.visuals(), moment=drawn.moments)
def test_an_owed_place_goes_to_the_oldest_picture_or_window(name, waiting, moment):
    owed = moment._replace(number=SHARE * (moment.number + 1) - 1)
    first = waiting[drawn.encode_order(name)(waiting, owed)[0]]
    if name == "twsrf":
        assert first.since_s < min(each.since_s for each in waiting) + 0.1
    else:
        assert first is waiting[0]
