"""The window of a batch: bounded by memory, a group's beginning counted once, empty in the end."""

import random

from router.offline import Task, Window, plan
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
