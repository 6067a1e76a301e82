"""Whatever is cancelled, at whatever moment: everything is free again, although no lease and no
guard would end it, and the neighbours' tokens are what they would have been."""

import asyncio
import sys
from contextlib import suppress

import pytest

from cluster.build import start_cluster
from tests.patience import PATIENCE_S
from tests.services import test_topologies
from tests.services.driver import Question, driving, idle, rng_of
from triptych.core.errors import Overloaded, Preempted, RequestError, TriptychError, Unavailable
from triptych.core.event import Encoded
from triptych.core.handoff import EncodeJob, LanguageJob
from triptych.inputs.decode import DecoderPool


def config(topology, transport="auto", *more):
    """Nothing but a cancel, or an end, frees anything while a test waits for it."""
    endless = ("transfer.lease_s=1000.0", "transfer.guard_s=1000.0")
    return test_topologies.config(topology, transport, *endless, *more)


@pytest.mark.usefixtures("no_leak")
@pytest.mark.parametrize("topology", ["E1,P1,D1", "EP1,D1", "E1,PD1", "EPD1"])
async def test_cancel_at_random_moments(topology):
    rng = rng_of("cancel", topology)
    settings = config(topology, "auto", "cache.kv_blocks=64", "cache.embedding_blocks=40")

    async def doomed(driver, after_s):
        with suppress(TimeoutError, Preempted):
            async with asyncio.timeout(after_s):
                await driver.ask(Question(rng, rng.randint(0, 2), max_tokens=800))

    async def spared(driver):
        question = Question(rng, rng.randint(0, 2), max_tokens=9)
        while True:
            with suppress(Preempted):
                assert await driver.ask(question) == question.answer()
                return

    async with await start_cluster(settings) as cluster, driving(cluster) as driver:
        for _ in range(4):
            victims = [doomed(driver, rng.random() * 0.12) for _ in range(8)]
            await asyncio.gather(*victims, *(spared(driver) for _ in range(3)))
            await idle(cluster)


@pytest.mark.usefixtures("no_leak")
@pytest.mark.parametrize("topology", ["E1,P1,D1", "EPD1"])
async def test_a_broken_session_cancels_its_jobs(topology):
    rng = rng_of("session", topology)
    async with await start_cluster(config(topology)) as cluster:
        async with driving(cluster) as driver:
            jobs = [driver.plan(Question(rng, 1, max_tokens=500)) for _ in range(5)]
            for name, job in (pair for plan in jobs for pair in plan):
                await cluster.instance(name).submit(job)
            await asyncio.sleep(rng.random() * 0.1)
        await idle(cluster)


@pytest.mark.parametrize("kept", [EncodeJob, LanguageJob])
async def test_a_promise_that_nobody_keeps_or_takes(kept):
    """Only the producers, or only the consumers, were sent; cancelling frees them."""
    rng = rng_of("half", kept.__name__)
    async with await start_cluster(config("E1,P1,D1")) as cluster, driving(cluster) as driver:
        plan = [pair for pair in driver.plan(Question(rng, 2)) if isinstance(pair[1], kept)]
        for name, job in plan:
            await cluster.instance(name).submit(job)
        await asyncio.sleep(0.1)
        assert any(not census.is_idle for census in await cluster.census())
        await driver.cancel(plan)
        await idle(cluster)


@pytest.mark.parametrize("topology", ["E1,P1,D1", "E1,PD1"])
async def test_an_encoder_that_is_told_to_stop_is_a_loss_to_who_waits_for_it(topology):
    """Nobody cancelled the prompt's job, so it must not end as cancelled: it may be retried."""
    rng = rng_of("stop", topology)
    async with await start_cluster(config(topology)) as cluster, driving(cluster) as driver:
        plan = driver.plan(Question(rng, 1))
        (encoder, encode), (_, language) = plan[:2]
        queue = driver.queues[language.header.id] = asyncio.Queue()
        for name, job in plan:
            await cluster.instance(name).submit(job)
        await cluster.instance(encoder).cancel([encode.header.id])
        async with asyncio.timeout(PATIENCE_S):
            failed = await queue.get()
        assert (failed.code, failed.blame) == ("data_loss", encoder)
        await driver.cancel(plan)
        await idle(cluster)


async def test_a_picture_is_forgotten_once_it_is_decoded():
    """The lease keeps an embedding, not the bytes it was made from."""
    rng = rng_of("bytes")
    async with await start_cluster(config("E1,P1,D1")) as cluster, driving(cluster) as driver:
        question = Question(rng, 1)
        for _ in range(2):  # decoded, then known
            name, job = driver.plan(question)[0]
            queue = driver.queues[job.header.id] = asyncio.Queue()
            before = sys.getrefcount(job)
            await cluster.instance(name).submit(job)
            async with asyncio.timeout(PATIENCE_S):
                assert isinstance(await queue.get(), Encoded)
            assert sys.getrefcount(job) == before
            assert any(not census.is_idle for census in await cluster.census())
            await driver.cancel([(name, job)])
        await idle(cluster)


async def test_refusals_leave_nothing():
    rng = rng_of("refuse")
    settings = config("E1,P1,D1", "auto", "engine.max_waiting=0", "engine.max_sequences=2")
    async with await start_cluster(settings) as cluster, driving(cluster) as driver:
        plan = driver.plan(Question(rng, 1))
        by_type = {type(job).__name__: (name, job) for name, job in plan}
        with pytest.raises(RequestError):
            await cluster.instance(by_type["LanguageJob"][0]).submit(by_type["EncodeJob"][1])
        jobs = [driver.plan(Question(rng, 0, max_tokens=400))[0] for _ in range(9)]
        refused = 0
        for name, job in jobs:
            try:
                await cluster.instance(name).submit(job)
            except Overloaded:
                refused += 1
        assert refused == 7
        await driver.cancel(jobs)
        assert await cluster.instance(jobs[0][0]).drain(PATIENCE_S)
        with pytest.raises(Unavailable):
            await cluster.instance(jobs[0][0]).submit(jobs[0][1])
        await idle(cluster)


async def test_a_picture_that_is_none_fails_its_request_only():
    rng = rng_of("bad picture")
    async with await start_cluster(config("E1,P1,D1")) as cluster, driving(cluster) as driver:
        bad, good = Question(rng, 1), Question(rng, 1)
        bad.pictures[0] = b"no picture at all"
        with pytest.raises(RequestError):
            await driver.ask(bad)
        assert await driver.ask(good) == good.answer()
        await idle(cluster)


async def test_a_deadline_ends_every_stage():
    rng = rng_of("deadline")
    async with await start_cluster(config("E1,P1,D1")) as cluster:
        async with driving(cluster, budget_s=0.15) as driver:
            with pytest.raises(TriptychError) as caught:
                await driver.ask(Question(rng, 1, max_tokens=3000))
            assert caught.value.code == "deadline_exceeded"
            await idle(cluster)


@pytest.mark.usefixtures("no_leak")
async def test_a_cancel_while_a_picture_is_decoded_that_another_encoded(monkeypatch):
    """Its one end was told before: nothing is said behind it."""
    decode, goes_on, calls = DecoderPool.decode, asyncio.Event(), []

    async def slow(self, *about):
        calls.append(about)
        if len(calls) == 2:
            await goes_on.wait()
        return await decode(self, *about)

    monkeypatch.setattr(DecoderPool, "decode", slow)
    question = Question(rng_of("equal"), 1)
    async with await start_cluster(config("E1,P1,D1")) as cluster, driving(cluster) as driver:
        jobs = [driver.plan(question)[0] for _ in range(2)]
        for name, job in jobs:
            driver.queues[job.header.id] = asyncio.Queue()
            await cluster.instance(name).submit(job)
        async with asyncio.timeout(PATIENCE_S):
            for _, job in jobs:
                assert isinstance(await driver.queues[job.header.id].get(), Encoded)
            assert len(calls) == 2, "the second picture is not being decoded"
            for name, job in jobs:
                await cluster.instance(name).cancel([job.header.id])
        goes_on.set()
        await idle(cluster)
        assert all(driver.queues[job.header.id].empty() for _, job in jobs)


@pytest.mark.usefixtures("no_leak")
async def test_a_picture_that_is_late_is_decoded_no_further(monkeypatch):
    is_ended, never = asyncio.Event(), asyncio.Event()

    async def endless(_self, *_about):
        try:
            await never.wait()
        finally:
            is_ended.set()

    monkeypatch.setattr(DecoderPool, "decode", endless)
    question = Question(rng_of("late"), 1)
    async with (
        await start_cluster(config("E1,P1,D1")) as cluster,
        driving(cluster, budget_s=0.2) as driver,
    ):
        name, job = driver.plan(question)[0]
        queue = driver.queues[job.header.id] = asyncio.Queue()
        await cluster.instance(name).submit(job)
        async with asyncio.timeout(PATIENCE_S):
            assert (await queue.get()).code == "deadline_exceeded"
            await is_ended.wait()
            await cluster.instance(name).cancel([job.header.id])
        await idle(cluster)
