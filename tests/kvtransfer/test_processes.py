"""Two real processes: bytes over shared memory and TCP, crashes and hangs at every message."""

import asyncio
import hashlib
import json
import os
import signal
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from kvtransfer.build import build_outbox, build_receiver, build_ways
from kvtransfer.receiver import Receiver
from tests.kvtransfer.stores import (
    BETWEEN_PROCESSES,
    CALM,
    QUICK,
    SECRET,
    Store,
    by,
    only,
    ref_to,
)
from tests.patience import PATIENCE_S
from tests.signals import stop
from triptych.core.clock import MonotonicClock
from triptych.core.errors import InstanceLost, TransferError
from triptych.core.handoff import Endpoint
from triptych.core.ids import Handle, InstanceId

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("no_leak")


class Peer:
    def __init__(self, process) -> None:
        self.process = process

    def send(self, **line) -> None:
        self.process.stdin.write(json.dumps(line).encode() + b"\n")

    async def hear(self, kind: str):
        async with asyncio.timeout(PATIENCE_S):
            while True:
                line = json.loads(await self.process.stdout.readline())
                if kind in line:
                    return line[kind]

    async def gone(self) -> int:
        async with asyncio.timeout(PATIENCE_S):
            return await self.process.wait()


@asynccontextmanager
async def peer(side: str, point: str = "", how: str = "SIGKILL", *, way: str = "", config=CALM):
    command = [sys.executable, "-m", "tests.kvtransfer.peer", side]
    command += [msgspec.json.encode(by(way, config)).decode(), point, how]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, cwd=ROOT)
    try:
        yield Peer(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        process._transport.close()


@asynccontextmanager
async def taking(way: str = "", config=CALM):
    """A receiver here, its store, and a function that fetches."""
    config, clock = by(way, config), MonotonicClock()
    ways = build_ways(InstanceId("taker@0"), config)
    receiver = build_receiver(InstanceId("taker@0"), config, SECRET, clock, ways)
    store = Store().fill(2)

    async def fetch(endpoint: Endpoint, handle: str, blocks: list[int]) -> bytes:
        ref = ref_to("giver@0", endpoint, len(blocks), store.layout, handle)
        until = MonotonicClock().now() + PATIENCE_S
        return await receiver.fetch(ref, store, blocks, 0, lambda _: None, until)

    try:
        yield receiver, store, fetch
    finally:
        await receiver.close()
        for each in ways:
            each.close()
        store.close()


@pytest.mark.parametrize("way", BETWEEN_PROCESSES)
async def test_bytes_pass_between_processes(way):
    expected = Store().fill(1)
    async with peer("give", way=way) as giver, taking(way) as (receiver, store, fetch):
        endpoint = only(msgspec.convert(await giver.hear("endpoint"), Endpoint), way)
        for turn in range(5):
            handle = f"h{turn}"
            task = asyncio.create_task(fetch(endpoint, handle, [9, 3, 4, 30]))
            giver.send(do="offer", handle=handle, blocks=[turn, 11, 12, 5], finish=True)
            assert await task == b"tail"
            for theirs, ours in zip([turn, 11, 12, 5], [9, 3, 4, 30], strict=True):
                assert store.block(ours) == expected.block(theirs)
            assert await giver.hear("released") == [handle, "taken"]
        assert receiver.census() == []
        assert len(receiver._idle) == 1
    expected.close()


MESSAGES = ("Welcome", "Wait", "Manifest", "Chunk", "Finish", "Acked")


def product(others, is_rest):
    """Of ``others`` and ways. Starting ``nccl`` takes ten seconds of two cores: what ``is_rest``
    there is in the matrix."""
    return [
        pytest.param(
            other, "nccl", marks=[pytest.mark.matrix] if is_rest(other) else [], id=f"{other}-nccl"
        )
        for other in others
    ] + [
        pytest.param(other, *way.values, marks=way.marks, id=f"{other}-{way.values[0]}")
        for other in others
        for way in (pytest.param(way) if isinstance(way, str) else way for way in BETWEEN_PROCESSES)
        if way.values != ("nccl",)
    ]


KILLS = product(("before", "after"), lambda when: when == "before")
HANGS = product(("Manifest", "Chunk", "Finish", "Acked"), lambda name: name in ("Chunk", "Acked"))


@pytest.mark.parametrize(("when", "way"), KILLS)
@pytest.mark.parametrize("name", MESSAGES)
async def test_the_giver_is_killed_at_every_message(name, when, way):
    fds = len(os.listdir("/proc/self/fd"))
    async with (
        taking(way) as (receiver, store, fetch),
        peer("give", f"{when}:{name}", way=way) as giver,
    ):
        endpoint = only(msgspec.convert(await giver.hear("endpoint"), Endpoint), way)
        task = asyncio.create_task(fetch(endpoint, "h", [9, 3, 4]))
        if name == "Wait":
            await asyncio.wait([task])
        else:
            giver.send(do="offer", handle="h", blocks=[1, 2, 3], finish=True)
        if (when, name) == ("after", "Acked"):
            assert await task == b"tail"
        else:
            with pytest.raises(InstanceLost):
                await task
        assert receiver.census() == []
        assert await giver.gone() == -signal.SIGKILL
        with pytest.raises(InstanceLost):
            await fetch(endpoint, "next", [1])
        assert receiver._idle == []
        before = bytes(store.view)
        await asyncio.sleep(0.02)
        assert bytes(store.view) == before
    assert len(os.listdir("/proc/self/fd")) <= fds + 2


@pytest.mark.parametrize(("name", "way"), HANGS)
async def test_a_giver_that_hangs_is_given_up_and_cannot_come_back(name, way):
    async with taking(way, QUICK) as (receiver, store, fetch):
        async with peer("give", f"before:{name}", "SIGSTOP", way=way) as giver:
            endpoint = only(msgspec.convert(await giver.hear("endpoint"), Endpoint), way)
            giver.send(do="offer", handle="h", blocks=[1, 2, 3], finish=True)
            start = MonotonicClock().now()
            with pytest.raises(InstanceLost, match="silent"):
                await fetch(endpoint, "h", [9, 3, 4])
            assert MonotonicClock().now() - start >= QUICK.timeout_s
            assert receiver.census() == []
            before = bytes(store.view)
            await asyncio.sleep(0.1)
            giver.process.send_signal(signal.SIGCONT)
            handle, why = await giver.hear("released")
            assert (handle, why) == ("h", "taken" if name == "Acked" else "taker_lost")
            giver.send(do="census")
            assert await giver.hear("census") == []
            assert bytes(store.view) == before


async def test_a_giver_that_hangs_before_the_connection_costs_one_timeout(monkeypatch):
    """Silence is not a reason to try another way; only a refusal is."""
    tried, try_one = [], Receiver._open
    monkeypatch.setattr(Receiver, "_open", lambda *words: tried.append(1) or try_one(*words))
    async with taking(config=QUICK) as (_, _, fetch), peer("give") as giver:
        endpoint = msgspec.convert(await giver.hear("endpoint"), Endpoint)
        stop(giver.process.pid)
        with pytest.raises(InstanceLost, match="silent"):
            await fetch(endpoint, "h", [1])
        assert len(tried) == 1


@asynccontextmanager
async def giving(way: str = "", config=CALM):
    """An outbox here and what it released."""
    loop = asyncio.get_running_loop()
    config = by(way, config)
    outbox = build_outbox(
        InstanceId("giver@0"), config, SECRET, MonotonicClock(), loop.call_soon_threadsafe
    )
    store = Store().fill(1)
    released: list[str] = []
    offer = outbox.offer(Handle("h"), 0, store, "job", released.append)
    try:
        yield outbox, store, offer, released
    finally:
        await outbox.close()
        store.close()


@pytest.mark.parametrize("way", BETWEEN_PROCESSES)
@pytest.mark.parametrize("point", ["after:Hello", "before:Fetch", "after:Fetch", "before:Ack"])
async def test_the_taker_is_killed_at_every_message(point, way):
    async with giving(way) as (outbox, _, offer, released), peer("take", point, way=way) as taker:
        endpoint = only(outbox.start(), way)
        await taker.hear("ready")
        offer.append([1, 2, 3])
        offer.finish(b"tail")
        taker.send(handle="h", blocks=[5, 6, 7], endpoint=msgspec.to_builtins(endpoint))
        assert await taker.gone() == -signal.SIGKILL
        if point in ("after:Hello", "before:Fetch"):
            await asyncio.sleep(0.3)
            assert released == []  # it never came: the lease goes on
        else:
            async with asyncio.timeout(PATIENCE_S):
                while not released:
                    await asyncio.sleep(0.01)
            assert released == ["taker_lost"]
            assert outbox.census() == []
        async with asyncio.timeout(PATIENCE_S):
            while outbox._conversations:
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("way", BETWEEN_PROCESSES)
async def test_a_taker_killed_after_its_ack_has_taken(way):
    async with (
        giving(way) as (outbox, _, offer, released),
        peer("take", "after:Ack", way=way) as taker,
    ):
        endpoint = only(outbox.start(), way)
        offer.append([1])
        offer.finish()
        taker.send(handle="h", blocks=[5], endpoint=msgspec.to_builtins(endpoint))
        assert await taker.gone() == -signal.SIGKILL
        async with asyncio.timeout(PATIENCE_S):
            while not released:
                await asyncio.sleep(0.01)
        assert released == ["taken"]
        assert outbox.census() == []


@pytest.mark.parametrize("way", BETWEEN_PROCESSES)
@pytest.mark.parametrize("finished", [True, False])
async def test_a_taker_that_hangs_is_fenced_and_its_bytes_never_count(finished, way):
    """The memory is reused while it sleeps: what it has copied is worthless, and it is told."""
    async with (
        giving(way, QUICK) as (outbox, store, offer, released),
        peer("take", "after:Fetch", "SIGSTOP", way=way) as taker,
    ):
        endpoint = only(outbox.start(), way)
        offer.append([1, 2])
        if finished:
            offer.append([3])
            offer.finish(b"tail")
        taker.send(handle="h", blocks=[5, 6, 7], endpoint=msgspec.to_builtins(endpoint))
        async with asyncio.timeout(PATIENCE_S):
            while not released:
                await asyncio.sleep(0.01)
        assert released == ["taker_lost"]
        assert outbox.census() == []
        store.fill(77)  # the next owner of the blocks
        await asyncio.sleep(0.1)
        taker.process.send_signal(signal.SIGCONT)
        assert (await taker.hear("failed"))[1] in (InstanceLost.code, TransferError.code)


async def test_a_slept_taker_that_wakes_in_time_gets_the_right_bytes():
    async with (
        giving() as (outbox, store, offer, released),
        peer("take", "after:Fetch", "SIGSTOP") as taker,
    ):
        endpoint = only(outbox.start(), "shm")
        offer.append([1, 2, 3])
        offer.finish(b"tail")
        taker.send(handle="h", blocks=[5, 6, 7], endpoint=msgspec.to_builtins(endpoint))
        async with asyncio.timeout(PATIENCE_S):
            while not outbox.offers.owners() or offer.lease.taker == "":
                await asyncio.sleep(0.005)
        await asyncio.sleep(0.3)
        taker.process.send_signal(signal.SIGCONT)
        digest = hashlib.sha256(b"".join(store.block(b) for b in (1, 2, 3))).hexdigest()
        assert await taker.hear("taken") == ["h", "tail", digest]
        assert released == ["taken"]
