"""The window of a batch: bounded by memory, a group's beginning counted once, empty in the end."""

import asyncio
import random

import pytest

from router.offline import Task, Window, plan, run
from scheduler.grouping import Group
from tests.patience import PATIENCE_S
from triptych.core.request import Prompt


def task(prompt_len: int, max_tokens: int = 10) -> Task:
    return Task(0, lambda: None, prompt_len, max_tokens)


def test_a_beginning_counts_once_and_until_the_last_of_its_group_has_left():
    window = Window(120)
    need = window.need(task(100), 90)
    assert need == 10 + 5 + 1
    window.enter(need, 0, 90)
    assert window.has_room(need - 2, 0, 90), "90 of it is there already"
    assert not window.has_room(need, 1, 90)
    window.enter(need - 2, 0, 90)
    window.leave(need, 0, 90)
    assert not window.has_room(20, 1, 0), "the beginning is still held by the other one"
    window.leave(need - 2, 0, 90)
    assert window.num_flying == 0
    assert window.has_room(10_000, 1, 90), "one that does not fit runs alone"


def test_the_window_never_overflows_and_learns_how_long_answers_are():
    rng, window = random.Random(3), Window(1000)
    flying: list[tuple[int, int, int]] = []
    for _ in range(3000):
        number = rng.randrange(4)
        shared = 50 * number
        need = window.need(task(shared + rng.randrange(1, 60), 40), shared)
        if window.has_room(need, number, shared):
            window.enter(need, number, shared)
            flying.append((need, number, shared))
            begun = {number: shared for _, number, shared in flying}
            used = sum(need for need, _, _ in flying) + sum(begun.values())
            assert used <= 1000 or len(flying) == 1
        else:
            window.leave(*flying.pop(rng.randrange(len(flying))))
            window.learn(4, 40)
    assert window.need(task(0, 40), 0) == 4 + 1


def test_a_plan_in_the_order_given_shares_nothing():
    prompts = [Prompt((1, 2, index)) for index in range(4)]
    assert [one.members for one in plan(prompts, [1] * 4, grouped=False).groups] == [
        (0,), (1,), (2,), (3,),
    ]  # fmt: skip
    together = plan(prompts, [1] * 4)
    assert (together.prompt_tokens, together.shared_tokens) == (12, 6)


class Broken:
    """A service with a fault: it raises ``error`` for the second request; the others never end."""

    def __init__(self, error: BaseException) -> None:
        self._error = error
        self._num_asked = 0
        self.num_open = 0

    def admit(self, tenant):
        pass

    async def generate(self, request, ticket):
        self._num_asked += 1
        self.num_open += 1
        try:
            if self._num_asked == 2:
                await asyncio.sleep(0)
                raise self._error
            await asyncio.Event().wait()
            yield
        finally:
            self.num_open -= 1


@pytest.mark.parametrize("error", [ZeroDivisionError("a fault"), asyncio.CancelledError()])
async def test_a_fault_of_the_service_ends_the_batch_instead_of_hanging_it(error):
    service = Broken(error)
    tasks = [Task(number, Ask, 10, 10) for number in range(3)]
    groups = [Group((number,), 10) for number in range(3)]
    with pytest.raises(type(error)):
        async with asyncio.timeout(PATIENCE_S):
            async for _ in run(service, tasks, groups, 1000):
                pass
    assert service.num_open == 0, "what was in flight was ended"


class Ask:
    """A request, as far as it is looked at."""

    tenant = "public"
