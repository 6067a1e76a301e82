"""Events of a request's jobs, until its deadline."""

import asyncio
from contextlib import aclosing

import pytest

from router.dispatch import Scope
from tests.patience import PATIENCE_S
from triptych.core.errors import DeadlineExceeded
from triptych.core.event import Token, Tokens
from triptych.core.ids import InstanceId, JobId

EVENT = Tokens(JobId("job"), (Token(0, 5),))


@pytest.mark.parametrize("left_s", [-1.0, 0.05])
async def test_what_came_is_told_and_then_the_deadline(left_s):
    scope, found = Scope(None), []
    scope.put(InstanceId("decode-0"), EVENT)
    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(DeadlineExceeded):
            async for _, event in scope.events(asyncio.get_running_loop().time() + left_s):
                found.append(event)
    assert found == [EVENT]


async def test_who_stops_asking_leaves_no_alarm():
    scope = Scope(None)
    scope.put(InstanceId("decode-0"), EVENT)
    async with aclosing(scope.events(asyncio.get_running_loop().time() + 0.05)) as events:
        assert (await anext(events))[1] == EVENT
    await asyncio.sleep(0.1)
    assert scope._events.empty()
