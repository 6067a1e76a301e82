"""Attempts and the waits between them, at instances that fail when a test wants them to."""

import asyncio

import pytest

from cluster.catalog import Catalog
from router.dispatch import Dispatcher
from router.journey import Stages, Trip, journey
from router.knowledge import Knowledge
from router.ledger import Ledger
from scheduler.latency import Latencies
from scheduler.registry import placement
from tests.patience import PATIENCE_S
from tests.router.members import SESSION, ScriptedInstance, ScriptedMembers
from triptych.core.clock import MonotonicClock
from triptych.core.config_router import RouterConfig
from triptych.core.errors import DeadlineExceeded, InstanceLost, TriptychError, Unavailable
from triptych.core.ids import RequestId, TenantId
from triptych.core.request import Message, Prompt, Request, Sampling, Slo, StopRule, TextPart


async def ask(instance: ScriptedInstance, seconds: float) -> tuple[type[TriptychError], float]:
    """The error that ends a request at the only instance, and after how many seconds."""
    clock = MonotonicClock()
    dispatcher = Dispatcher(ScriptedMembers(a=instance), SESSION)
    dispatcher.refresh()
    await dispatcher.changed.wait()
    ledger = Ledger(clock)
    placing = (placement("least_loaded", Latencies()), Knowledge(Catalog(), Latencies()))
    stages = Stages(dispatcher, placing, ledger, RouterConfig(), clock)
    start_s = clock.now()
    request = Request(
        id=RequestId("r"), tenant=TenantId("t"), messages=(Message("user", (TextPart("hi"),)),),
        pictures=(), sampling=Sampling(), stop=StopRule(4, (), ()), slo=Slo(),
        deadline_s=start_s + seconds,
    )  # fmt: skip
    ledger.accept(request.id, request.tenant)
    try:
        async with asyncio.timeout(PATIENCE_S):
            with pytest.raises(TriptychError) as caught:
                async for _ in journey(Trip(request, Prompt((1, 2, 3)), 0, b"salt"), stages):
                    pass
        return caught.type, clock.now() - start_s
    finally:
        await dispatcher.close()


def failing(error: TriptychError) -> ScriptedInstance:
    def fail() -> None:
        raise error

    return ScriptedInstance(fail)


async def test_the_grace_for_suspects_ends_at_the_deadline() -> None:
    error, seconds = await ask(failing(InstanceLost("gone")), 0.2)
    assert error is DeadlineExceeded
    assert 0.2 <= seconds < 0.6


async def test_patience_with_an_instance_that_drains_ends_at_the_deadline() -> None:
    instance = failing(Unavailable("the instance is draining"))
    error, seconds = await ask(instance, 1.5)
    assert error is DeadlineExceeded, "longer than the grace for suspects: it was waited for"
    assert 1.5 <= seconds < 2.0


async def test_a_job_that_is_never_answered_ends_at_the_deadline() -> None:
    instance = ScriptedInstance()
    instance.gate.clear()
    asking = asyncio.create_task(ask(instance, 0.2))
    await asyncio.sleep(0.5)
    instance.gate.set()
    error, seconds = await asking
    assert error is DeadlineExceeded
    assert 0.2 <= seconds < 0.45
    assert instance.log == ["submit r/0/0/decode", "cancel r/0/0/decode"]
