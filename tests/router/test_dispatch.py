"""Sessions, scopes and refusals, at instances that hang or drain when a test wants them to."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from router.dispatch import Dispatcher
from tests.patience import PATIENCE_S
from tests.router.members import SESSION, ScriptedInstance, ScriptedMembers, job
from triptych.core.errors import DeadlineExceeded, Unavailable
from triptych.core.ids import InstanceId
from triptych.core.lifecycle import InstanceState, Stage

A, B = InstanceId("a"), InstanceId("b")


@asynccontextmanager
async def dispatching(**instances: ScriptedInstance) -> AsyncIterator[Dispatcher]:
    dispatcher = Dispatcher(ScriptedMembers(**instances), SESSION)
    dispatcher.refresh()
    async with asyncio.timeout(PATIENCE_S):
        while len(dispatcher.view().instances) < len(instances):
            dispatcher.changed.clear()
            await dispatcher.changed.wait()
        yield dispatcher
        await dispatcher.close()


def in_s(seconds: float) -> float:
    return asyncio.get_running_loop().time() + seconds


async def test_an_instance_that_does_not_answer_does_not_hold_a_request_past_its_deadline() -> None:
    answers, hangs = ScriptedInstance(), ScriptedInstance()
    hangs.gate.clear()
    async with dispatching(a=answers, b=hangs) as dispatcher:
        with pytest.raises(DeadlineExceeded):
            async with dispatcher.scope() as scope:
                await scope.start([(A, job("one")), (B, job("two"))], in_s(0.1))
        assert dispatcher.num_jobs == 0
        await asyncio.sleep(0.05)
        assert hangs.log == [], "a cancel must not overtake its job"
        hangs.gate.set()
        await dispatcher.settle()
        assert answers.log == ["submit one", "cancel one"]
        assert hangs.log == ["submit two", "cancel two"]


async def test_an_instance_that_refuses_as_draining_serves_no_more_until_it_is_replaced() -> None:
    def refuse() -> None:
        raise Unavailable("the instance is draining")

    drains = ScriptedInstance(refuse)
    async with dispatching(a=ScriptedInstance(), b=drains) as dispatcher:
        with pytest.raises(Unavailable):
            async with dispatcher.scope() as scope:
                await scope.start([(B, job("one"))], in_s(1.0))
        assert [each.description.id for each in dispatcher.view().serving(Stage.DECODE)] == [A]
        states = {each.description.id: each.state for each in dispatcher.view().instances}
        assert states == {A: InstanceState.READY, B: InstanceState.DRAINING}
        dispatcher.changed.clear()
        drains.end.set()
        await dispatcher.changed.wait()
        assert [each.description.id for each in dispatcher.view().instances] == [A]


async def test_settle_waits_for_the_cancellations_of_now_only() -> None:
    quick, slow = ScriptedInstance(), ScriptedInstance()
    async with dispatching(a=quick, b=slow) as dispatcher:
        quick.cancel_gate.clear()
        slow.cancel_gate.clear()
        async with dispatcher.scope() as scope:
            await scope.start([(A, job("one"))], in_s(1.0))
        settling = asyncio.create_task(dispatcher.settle())
        await asyncio.sleep(0)
        async with dispatcher.scope() as scope:
            await scope.start([(B, job("two"))], in_s(1.0))
        assert not settling.done()
        quick.cancel_gate.set()
        async with asyncio.timeout(PATIENCE_S):
            await settling
        assert slow.log == ["submit two"]
        slow.cancel_gate.set()
