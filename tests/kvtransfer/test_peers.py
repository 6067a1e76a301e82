"""Peers that know the secret and still say wrong things: refused before a byte is misplaced."""

import asyncio
import hashlib
import os
import socket
import threading

import pytest

from kvtransfer.build import build_receiver
from kvtransfer.channel import Channel
from kvtransfer.inproc import MemorySource
from kvtransfer.manifest import Abort, Ack, Acked, Chunk, Fetch, Finish, Manifest, Wait
from kvtransfer.shm import FileSource
from tests.kvtransfer.stores import QUICK, SECRET, Store, layout, pair, ref_to
from triptych.core.clock import MonotonicClock
from triptych.core.errors import InstanceLost, TransferError, TriptychError
from triptych.core.handoff import Endpoint
from triptych.core.ids import InstanceId

pytestmark = pytest.mark.usefixtures("no_leak")
PRINT = layout().fingerprint
SIZE = layout().block_bytes


class ScriptedGiver:
    """Welcomes, hears the Fetch, and says its lines: ``(message, payload)``."""

    def __init__(self, store: Store, lines) -> None:
        self._store = store
        self._lines = lines
        self.thread: threading.Thread | None = None

    def connect(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        self.thread = threading.Thread(target=self._run, args=(ours,))
        self.thread.start()
        return theirs

    def memory(self, _number: int) -> Store:
        return self._store

    def _run(self, sock) -> None:
        channel = Channel(sock, MonotonicClock(), 5.0)
        try:
            channel.welcome(SECRET, "giver@0")
            channel.receive()
            for message, payload in self._lines:
                channel.send(message, [memoryview(payload)] if payload else [])
            while True:
                channel.receive()
        except TriptychError:
            pass
        finally:
            channel.close()


def chunk(first=0, places=(1, 2), payload=b"", count=None, digest=None):
    store = Store().fill(1)
    data = payload or b"".join(store.block(place) for place in places if place < 33)
    store.close()
    sealed = hashlib.sha256(data).digest() if digest is None else digest
    return (Chunk(first, count or len(places), () if payload else places, sealed), payload)


MAPPED = (Manifest(PRINT, 0, 33, True), b"")
STREAM = (Manifest(PRINT, 0, 33, False), b"")
END = (Finish(2, b"tail"), b"")

WRONG = {
    "another layout": [(Manifest("x" * 32, 0, 33, True), b"")],
    "no manifest": [chunk()],
    "finished before it began": [END],
    "a second manifest": [MAPPED, MAPPED],
    "too early a chunk": [MAPPED, chunk(first=1)],
    "the first chunk twice": [MAPPED, chunk(places=(1,)), chunk(places=(1,))],
    "more blocks than wanted": [MAPPED, chunk(places=(1, 2, 3))],
    "blocks that the store lacks": [MAPPED, chunk(places=(1, 33))],
    "places and count differ": [MAPPED, chunk(places=(1,), count=2)],
    "no payload": [STREAM, (Chunk(0, 2, (), bytes(32)), b"")],
    "a payload too short": [STREAM, chunk(payload=bytes(2 * SIZE - 1), count=2)],
    "a payload too long": [STREAM, chunk(payload=bytes(2 * SIZE + 1), count=2)],
    "places in a stream": [STREAM, chunk(digest=bytes(32))],
    "a payload and places": [MAPPED, (Chunk(0, 2, (1, 2), bytes(32)), bytes(2 * SIZE))],
    "no digest": [MAPPED, chunk(digest=b"")],
    "a wrong digest": [MAPPED, chunk(digest=bytes(32))],
    "too few blocks": [MAPPED, chunk(places=(1,)), END],
    "another total": [MAPPED, chunk(), (Finish(3, b""), b"")],
    "confirmed without an ack": [MAPPED, chunk(), (Acked(), b"")],
    "finished twice": [MAPPED, chunk(), END, END],
    "an ack from the giver": [MAPPED, (Ack(), b"")],
    "a fetch from the giver": [(Fetch("h", 0, PRINT, 0, 1), b"")],
    "aborted after the end": [MAPPED, chunk(), END, (Abort("data_loss", "withdrawn"), b"")],
}


async def converse(lines) -> bytes:
    source, target = Store().fill(1), Store()
    giver = ScriptedGiver(source, lines)
    own = InstanceId("taker@0")
    clock = MonotonicClock()
    receiver = build_receiver(own, QUICK, SECRET, clock, {InstanceId("giver@0"): giver})
    ref = ref_to("giver@0", Endpoint(), 2, target.layout)
    try:
        tail = await receiver.fetch(ref, target, [4, 5], 0, lambda _: None, clock.now() + 9)
        assert target.block(4) == source.block(1)
        assert target.block(5) == source.block(2)
        return tail
    finally:
        rest = [block for block in range(33) if block not in (4, 5)]
        assert not any(any(target.block(block)) for block in rest), "wrote where it must not"
        assert receiver.census() == []
        await receiver.close()
        giver.thread.join()
        source.close()
        target.close()


async def test_the_right_words_are_believed():
    assert await converse([MAPPED, chunk(), END, (Acked(), b"")]) == b"tail"
    waits = [(Wait(), b"")]
    lines = [*waits, MAPPED, *waits, chunk(places=(1,)), *waits, chunk(1, (2,)), END, *waits]
    assert await converse([*lines, (Acked(), b"")]) == b"tail"


@pytest.mark.parametrize("name", WRONG)
async def test_a_giver_that_says_wrong_things(name):
    with pytest.raises(TransferError):
        await converse(WRONG[name])


async def test_places_outside_the_store_are_never_read():
    store = Store(5)
    targets = [memoryview(bytearray(2 * SIZE))]
    source = FileSource(os.dup(store.fd), 5)
    for wrong in (Chunk(0, 2, (4, 5), b""), Chunk(0, 2, (4,), b""), Chunk(0, 2, (), b"")):
        for each in (source, MemorySource(store)):
            with pytest.raises(TransferError):
                each.read(wrong, targets)
    boastful = FileSource(os.dup(store.fd), 500)  # announced larger than it is
    with pytest.raises(TransferError, match="shorter"):
        boastful.read(Chunk(0, 2, (4, 499), b""), targets)
    for each in (source, boastful):
        each.close()
    store.close()


# -- takers


async def as_taker(both, *lines):
    """Say ``lines`` to a real outbox; what it answers until it closes the connection."""

    def talk():
        channel = Channel(both.outbox.connect(), MonotonicClock(), 3.0)
        heard = []
        try:
            channel.greet(SECRET, "taker@0")
            for line in lines:
                channel.send(line)
            while True:
                heard.append(channel.receive()[0])
        except InstanceLost:
            return heard
        finally:
            channel.close()

    return await asyncio.to_thread(talk)


@pytest.mark.parametrize(
    "lines",
    [
        (Ack(),),
        (Wait(),),
        (Fetch("h", 0, PRINT, 0, 1), Fetch("h", 0, PRINT, 0, 1)),
        (Fetch("h", 0, PRINT, 0, 2), Ack()),
        (Fetch("h", 0, PRINT, 0, 1), Finish(1, b"")),
    ],
    ids=["ack first", "wait first", "two fetches", "ack before the end", "words of a giver"],
)
async def test_a_taker_that_says_wrong_things_is_put_out(lines):
    async with pair() as both:
        offer = both.offer()
        offer.append([1])
        heard = await as_taker(both, *lines)
        assert not any(isinstance(message, Acked) for message in heard)
        is_opened = isinstance(lines[0], Fetch)
        await asyncio.sleep(0.05)
        assert both.released["h"] == (["taker_lost"] if is_opened else [])
        await both.outbox.withdraw("h")
        await both.assert_idle()


async def test_a_taker_that_wants_what_is_not_there():
    async with pair() as both:
        offer = both.offer()
        offer.append([1])
        offer.finish()
        heard = await as_taker(both, Fetch("h", 0, PRINT, 2**40, 2**40))
        assert isinstance(heard[-1], Abort)
        assert both.released["h"] == ["failed"]
