"""Attempts and the waits between them, at instances that fail when a test wants them to."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

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
from triptych.core.event import Encoded, EventBatch, Finished, Timing, Token, Tokens
from triptych.core.ids import ContentHash, JobId, RequestId, SessionId, TenantId
from triptych.core.request import (
    ImagePart,
    Item,
    Message,
    Picture,
    Prompt,
    Request,
    Sampling,
    Slo,
    StopRule,
    TextPart,
)


@asynccontextmanager
async def setting_out(
    instance: ScriptedInstance, seconds: float, items: tuple[Item, ...] = ()
) -> AsyncIterator[tuple[Trip, Stages]]:
    """A request at the only instance, with a picture for each item."""
    clock = MonotonicClock()
    dispatcher = Dispatcher(ScriptedMembers(a=instance), SESSION)
    dispatcher.refresh()
    await dispatcher.changed.wait()
    ledger = Ledger(clock)
    placing = (placement("least_loaded", Latencies()), Knowledge(Catalog(), Latencies()))
    stages = Stages(dispatcher, placing, ledger, RouterConfig(), clock)
    parts = (TextPart("hi"), *(ImagePart(index) for index in range(len(items))))
    request = Request(
        id=RequestId("r"), tenant=TenantId("t"), messages=(Message("user", parts),),
        pictures=(Picture(b"png", "PNG", 2, 2),) * len(items), sampling=Sampling(),
        stop=StopRule(4, (), ()), slo=Slo(), deadline_s=clock.now() + seconds,
    )  # fmt: skip
    ledger.accept(request.id, request.tenant)
    try:
        async with asyncio.timeout(PATIENCE_S):
            yield Trip(request, Prompt((1, 2, 3), items), 0, b"salt"), stages
    finally:
        await dispatcher.close()


async def ask(instance: ScriptedInstance, seconds: float) -> tuple[type[TriptychError], float]:
    """The error that ends a request at the only instance, and after how many seconds."""
    async with setting_out(instance, seconds) as (trip, stages):
        start_s = stages.clock.now()
        with pytest.raises(TriptychError) as caught:
            async for _ in journey(trip, stages):
                pass
        return caught.type, stages.clock.now() - start_s


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


class Hasty(ScriptedInstance):
    """Answers before it says of the second picture that it is encoded."""

    async def open(self, session: SessionId) -> AsyncGenerator[EventBatch, None]:
        yield EventBatch()
        while len(self.log) < 3:
            await asyncio.sleep(0.001)
        yield EventBatch((Encoded(JobId("r/0/0/encode0"), Timing(cached_tokens=1)),))
        job = JobId("r/0/0/decode")
        yield EventBatch((Tokens(job, (Token(0, 5),)), Finished(job, "stop", Timing())))
        await self.end.wait()


async def test_a_picture_whose_news_the_answer_overtakes_is_counted() -> None:
    items = tuple(Item(ContentHash(bytes([n]) * 32), n, 1, (1, 2, 2)) for n in range(2))
    async with setting_out(Hasty(), PATIENCE_S, items) as (trip, stages):
        tokens = [token.id async for some in journey(trip, stages) for token in some]
    assert (tokens, trip.reason) == ([5], "stop")
    assert trip.tally["cached"] == trip.tally["overtaken"] == 1
    assert trip.tally["computed"] == 0
