"""The stage API over a real socket: a scripted instance behind the real server and client."""

import asyncio
import time
from contextlib import aclosing, asynccontextmanager

import pytest

from decode_service.server import add_decode
from encoder_service.server import add_encoder
from prefill_service.server import add_prefill
from tests.patience import PATIENCE_S
from triptych.core import errors
from triptych.core.census import Census, Holding
from triptych.core.event import EventBatch, Finished, Timing, Token, Tokens
from triptych.core.handoff import EncodeJob, Endpoint, JobHeader, LanguageJob
from triptych.core.lifecycle import Stage
from triptych.core.request import Item, Prompt, Sampling, StopRule
from triptych.core.view import Description
from triptych.wire.client import ClientOptions, RemoteInstance
from triptych.wire.server import ServerLimits, add_instance, make_server
from triptych.wire.sessions import Sessions

SECRET = b"a secret"
HEADER = JobHeader("req/0/0/x", "router", 0, 5.0)
ENCODE = EncodeJob(HEADER, Item(b"k" * 32, 0, 4, (1, 4, 4)), b"picture", "PNG", "handle")
DECODE = LanguageJob(HEADER, Prompt((1, 2, 3)), Sampling(), StopRule(3))
PREFILL = LanguageJob(HEADER, Prompt((1, 2, 3)), Sampling(), StopRule(3), publish="h")


class Scripted:
    """An instance that answers every job with two tokens."""

    def __init__(self):
        self.broken = []
        self.sessions = Sessions(0.05, self.broken.append)
        self.jobs = []
        self.cancelled = []
        self.refusal = None

    async def describe(self):
        return Description(
            "decode-0@0", (Stage.DECODE,), "m", Endpoint(), None, None, 0, 0, 9, 1, {"kv": 3}
        )

    def open(self, session):
        return self.sessions.stream(session)

    async def submit(self, job):
        if self.refusal is not None:
            raise self.refusal
        self.jobs.append(job)
        self.sessions.join(job.header.session, job.header.id)
        self.sessions.emit(Tokens(job.header.id, (Token(0, 7, -0.5, ((7, -0.5),)),)))
        self.sessions.emit(Finished(job.header.id, "stop", Timing(cached_tokens=2)))

    async def cancel(self, jobs):
        self.cancelled.extend(jobs)

    async def census(self):
        return Census("decode-0@0", (Holding("job", "a", 1),), {"kv_block.total": 3})

    async def drain(self, timeout_s):
        return timeout_s > 0.5

    async def close(self):
        self.sessions.close()


@asynccontextmanager
async def served(**limits):
    instance = Scripted()
    server = make_server(SECRET, ServerLimits(**{"max_message_bytes": 65_536, **limits}))
    add_instance(server, instance)
    for add in (add_encoder, add_prefill, add_decode):
        add(server, instance.submit)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield instance, server, f"127.0.0.1:{port}"
    finally:
        await server.stop(0.2)


@asynccontextmanager
async def connected(address, secret=SECRET, timeout_s=PATIENCE_S):
    remote = RemoteInstance(address, ClientOptions(secret, timeout_s))
    try:
        yield remote
    finally:
        await remote.close()


@pytest.mark.parametrize("job", [ENCODE, DECODE, PREFILL])
async def test_a_job_arrives_and_its_events_come_back_in_one_batch(job):
    async with served() as (instance, _, address), connected(address) as remote:
        async with aclosing(remote.open("router")) as batches:
            assert await anext(batches) == EventBatch()
            await remote.submit(job)
            assert instance.jobs == [job]
            batch = await anext(batches)
            while not batch.events:
                batch = await anext(batches)
            assert [type(event) for event in batch.events] == [Tokens, Finished]
            assert batch.events[0].tokens[0].top == ((7, -0.5),)
        for _ in range(100):
            if instance.broken:
                break
            await asyncio.sleep(0.02)
        assert instance.broken == ["router"]


async def test_the_other_calls():
    async with served() as (instance, _, address), connected(address) as remote:
        assert await remote.describe() == await instance.describe()
        assert await remote.census() == await instance.census()
        assert await remote.drain(1.0) is True
        assert await remote.drain(0.1) is False
        await remote.cancel(["a", "b"])
        assert instance.cancelled == ["a", "b"]


@pytest.mark.parametrize(
    "error",
    [
        errors.Overloaded("full", retry_after_s=2.0),
        errors.Unavailable("draining"),
        errors.RequestError("too long", field="prompt"),
        errors.Preempted("again"),
    ],
)
async def test_refusals_come_back_as_themselves(error):
    async with served() as (instance, _, address), connected(address) as remote:
        instance.refusal = error
        with pytest.raises(type(error)) as caught:
            await remote.submit(DECODE)
        assert type(caught.value) is type(error)
        assert str(caught.value) == str(error)


async def test_strangers_are_refused_before_anything_is_done():
    async with served() as (instance, _, address), connected(address, b"wrong") as remote:
        with pytest.raises(errors.Unauthenticated):
            await remote.submit(ENCODE)
        with pytest.raises(errors.Unauthenticated):
            await remote.census()
        with pytest.raises(errors.Unauthenticated):
            await anext(remote.open("router"))
        assert instance.jobs == []
        assert len(instance.sessions) == 0


async def test_a_message_that_is_too_large_is_refused():
    async with served() as (instance, _, address), connected(address) as remote:
        with pytest.raises(errors.TriptychError):
            await remote.submit(EncodeJob(HEADER, ENCODE.item, b"x" * 70_000, "PNG", "h"))
        assert instance.jobs == []


async def test_silence_means_lost():
    async with served() as (instance, _, address), connected(address, timeout_s=0.3) as remote:
        instance.sessions._heartbeat_s = 60.0
        batches = remote.open("router")
        await anext(batches)
        with pytest.raises(errors.InstanceLost, match="silent"):
            await anext(batches)


async def test_a_stopped_server_means_lost():
    async with served() as (_, server, address), connected(address) as remote:
        batches = remote.open("router")
        await anext(batches)
        await server.stop(0)
        with pytest.raises(errors.InstanceLost):
            _ = [batch async for batch in batches]
        with pytest.raises(errors.InstanceLost):
            await remote.describe()


async def test_a_slow_reader_hears_all_that_was_said_before_the_server_stopped():
    heard = []

    async def read(batches):
        async for batch in batches:
            await asyncio.sleep(0.005)
            heard.extend(token.id for event in batch.events for token in event.tokens)

    async with served() as (instance, server, address), connected(address) as remote:
        batches = remote.open("router")
        await anext(batches)
        instance.sessions.join("router", "a")
        reading = asyncio.create_task(read(batches))
        for number in range(200):
            instance.sessions.emit(Tokens("a", (Token(number, number, 0.0),)))
            await asyncio.sleep(0)
        instance.sessions.close()
        await server.stop(PATIENCE_S)
        await remote.ended(PATIENCE_S)
        await remote.close()
        with pytest.raises(errors.Unavailable, match="closed by the instance"):
            await reading
    assert heard == list(range(200))


async def test_waiting_for_the_end_of_a_session_that_does_not_end_has_a_limit():
    async with served() as (_, _, address), connected(address) as remote:
        async with aclosing(remote.open("router")) as batches:
            await anext(batches)
            async with asyncio.timeout(PATIENCE_S):
                await remote.ended(0.05)
            assert await anext(batches) == EventBatch()


async def test_nobody_there_means_lost():
    async with connected("127.0.0.1:1") as remote:
        with pytest.raises(errors.InstanceLost):
            await remote.describe()
        with pytest.raises(errors.InstanceLost):
            await anext(remote.open("router"))


async def test_a_connection_that_is_closed_means_lost_to_whoever_waits():
    async with served() as (instance, _, address), connected(address) as remote:
        waits = asyncio.Event()
        instance.sessions._heartbeat_s = 60.0
        instance.cancel = lambda jobs: waits.wait()
        batches = remote.open("router")
        await anext(batches)
        calling = asyncio.create_task(remote.cancel(["a"]))
        reading = asyncio.create_task(anext(batches))
        await asyncio.sleep(0.05)
        await remote.close()
        results = await asyncio.gather(calling, reading, return_exceptions=True)
        assert [type(result) for result in results] == [errors.InstanceLost] * 2
        waits.set()


async def test_a_closed_connection_opens_nothing():
    async with served() as (_, _, address), connected(address) as remote:
        await remote.close()
        with pytest.raises(errors.InstanceLost):
            await anext(remote.open("router"))
        with pytest.raises(errors.InstanceLost):
            await remote.describe()


async def test_whoever_is_cancelled_is_cancelled():
    async with served() as (instance, _, address), connected(address) as remote:
        instance.sessions._heartbeat_s = 60.0
        instance.cancel = lambda jobs: asyncio.Event().wait()
        batches = remote.open("router")
        await anext(batches)
        tasks = [asyncio.create_task(wait) for wait in (remote.cancel(["a"]), anext(batches))]
        await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(result) for result in results] == [asyncio.CancelledError] * 2
        await until(lambda: instance.broken == ["router"])


async def test_our_own_standstill_is_not_the_instances_silence():
    """SIGSTOP, a paused machine: no time has passed for a loop that did not run."""
    async with served() as (instance, _, address), connected(address, timeout_s=0.5) as remote:
        waits = asyncio.Event()
        instance.cancel = lambda jobs: waits.wait()
        batches = remote.open("router")
        await anext(batches)
        tasks = [asyncio.create_task(wait) for wait in (remote.cancel(["a"]), anext(batches))]
        await asyncio.sleep(0.02)
        for _ in range(3):
            time.sleep(0.7)
            await asyncio.sleep(0.02)
        waits.set()
        assert await asyncio.gather(*tasks) == [None, EventBatch()]
        reading = asyncio.create_task(anext(batches))
        await asyncio.sleep(0)
        time.sleep(0.7)
        assert await reading == EventBatch()
        await batches.aclose()


class Relay:
    """A network between the two ends that can stop to carry anything, without a word to either."""

    def __init__(self, address):
        self.port = int(address.rpartition(":")[2])
        self.carries = asyncio.Event()
        self.carries.set()
        self.tasks = []

    async def __aenter__(self):
        self.server = await asyncio.start_server(self.accept, "127.0.0.1", 0)
        return f"127.0.0.1:{self.server.sockets[0].getsockname()[1]}"

    async def __aexit__(self, *_):
        self.server.close()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def accept(self, reader, writer):
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.port)
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            self.tasks.append(asyncio.create_task(self.carry(source, sink)))

    async def carry(self, source, sink):
        try:
            while data := await source.read(65_536):
                await self.carries.wait()
                sink.write(data)
        finally:
            sink.close()


async def test_a_router_that_vanished_without_a_word_is_noticed():
    """Its machine lost power: nothing comes, not even the end. Its jobs must not run for ever."""
    async with served(ping_s=0.3, pong_s=2.0) as (instance, _, address):
        relay = Relay(address)
        async with relay as near, connected(near, timeout_s=PATIENCE_S) as remote:
            batches = remote.open("router")
            await anext(batches)
            begun = time.monotonic()
            while time.monotonic() < begun + 1.5:
                await anext(batches)
            assert instance.broken == []
            relay.carries.clear()
            await until(lambda: instance.broken == ["router"])
            relay.carries.set()
            await batches.aclose()


async def until(holds, within_s=PATIENCE_S):
    async with asyncio.timeout(within_s):
        while not holds():
            await asyncio.sleep(0.02)
