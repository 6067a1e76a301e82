"""What a request's choices say, as its reader hears it."""

import asyncio
from types import SimpleNamespace

import pytest

from router.answer import Delta, TokenInfo
from router.running import MAX_PENDING_DELTAS, Running
from triptych.core.errors import Cancelled
from triptych.core.request import Slo


def delta(choice, text, finish_reason=None):
    return Delta(choice, text, (TokenInfo(ord(text[0]), text, text.encode()),), finish_reason)


def running(num_choices=1):
    request = SimpleNamespace(num_choices=num_choices, slo=Slo())
    found = Running(request, SimpleNamespace(taken_s=0.0))
    found.tasks = [asyncio.create_task(asyncio.sleep(60)) for _ in range(num_choices)]
    return found


async def test_a_reader_that_is_behind_hears_what_came_meanwhile_at_once():
    one = running()
    for text in "abc":
        await one.room.acquire()
        one.say(delta(0, text))
    deltas = one.deltas()
    first = await anext(deltas)
    assert (first.text, [token.text for token in first.tokens]) == ("abc", ["a", "b", "c"])
    waiting = asyncio.ensure_future(anext(deltas))
    await asyncio.sleep(0)
    assert not waiting.done()
    one.say(delta(0, "d"))
    assert (await waiting).text == "d"
    one.say(delta(0, "e"))
    one.say(Delta(0, "", (), "length"))
    one.num_finished += 1
    one.say(None)
    last = await anext(deltas)
    assert (last.text, len(last.tokens), last.finish_reason) == ("e", 1, "length")
    assert [one async for one in deltas] == []


async def test_choices_are_not_mixed_and_keep_their_order():
    two = running(num_choices=2)
    for choice, text in ((0, "a"), (0, "b"), (1, "c"), (0, "d"), (1, "e"), (1, "f")):
        await two.room.acquire()
        two.say(delta(choice, text))
    deltas = two.deltas()
    heard = [await anext(deltas) for _ in range(4)]
    assert [(each.choice, each.text) for each in heard] == [
        (0, "ab"), (1, "c"), (0, "d"), (1, "ef"),
    ]  # fmt: skip
    await deltas.aclose()


async def test_room_is_given_back_for_every_delta():
    one = running()
    for _ in range(MAX_PENDING_DELTAS):
        await one.room.acquire()
        one.say(delta(0, "x"))
    assert one.room.locked()
    deltas = one.deltas()
    assert (await anext(deltas)).text == "x" * MAX_PENDING_DELTAS
    for _ in range(MAX_PENDING_DELTAS):
        await one.room.acquire()
    assert one.room.locked()
    await deltas.aclose()


async def test_an_error_comes_before_what_was_not_heard_yet():
    two = running(num_choices=2)
    for choice, text in ((0, "a"), (1, "b"), (0, "c")):
        await two.room.acquire()
        two.say(delta(choice, text))
    deltas = two.deltas()
    assert (await anext(deltas)).text == "a"
    await two.end(Cancelled())
    with pytest.raises(Cancelled):
        await anext(deltas)
    assert all(task.cancelled() for task in two.tasks)
