"""Peers that know the secret and still say wrong things: refused before a byte is misplaced."""

import asyncio
import os
import socket
import threading
import time

import msgspec
import pytest

from kvtransfer.build import build_receiver
from kvtransfer.channel import Channel
from kvtransfer.manifest import (
    Abort,
    Ack,
    Acked,
    Chunk,
    Data,
    Fetch,
    Finish,
    Manifest,
    Message,
    Ready,
    Wait,
)
from kvtransfer.pieces import Piece, extents
from kvtransfer.transports.inproc import Inproc
from kvtransfer.transports.shm import FileSource
from kvtransfer.transports.tcp import StreamSource
from kvtransfer.transports.transport import Extent, slices
from tests.kvtransfer.stores import CALM, SECRET, Store, layout, pair, ref_to
from triptych.core.clock import MonotonicClock
from triptych.core.errors import InstanceLost, TransferError, TriptychError
from triptych.core.handoff import Endpoint
from triptych.core.ids import InstanceId

pytestmark = pytest.mark.usefixtures("no_leak")
PRINT = layout().fingerprint
SIZE = layout().block_bytes


class ScriptedGiver:
    """Welcomes, hears the Fetch, and says its lines: a message, a Data with its payload, or a
    function of its channel that makes the message."""

    def __init__(self, store: Store, lines) -> None:
        self._store = store
        self._lines = lines
        self.thread: threading.Thread | None = None
        self.heard: list[Message] = []

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
            for line in self._lines:
                message, payload = line if isinstance(line, tuple) else (line, b"")
                made = message(channel) if callable(message) else message
                channel.send(made, [memoryview(payload)] if payload else [])
            while True:
                self.heard.append(channel.receive()[0])
        except TriptychError:
            pass
        finally:
            channel.close()


class Scripted(Inproc):
    """Reads the giver's memory, or its stream if the manifest says so."""

    def source(self, channel, manifest, ref):
        if manifest.attach == b"stream":
            return StreamSource(channel)
        return super().source(channel, manifest, ref)


def chunk(first=0, places=(1, 2), tag=None, count=None, layers=(0, 2), is_free=True):
    """A chunk with the right tag of what it names."""

    def make(channel: Channel) -> Chunk:
        piece = Piece(first, count or len(places), *layers)
        sealed = tag
        if sealed is None:
            store = Store().fill(1)
            inside = [place for place in places if place < 33]
            parts = slices(store.view, extents(store.layout, inside, piece))
            sealed = channel.tag(channel.num_sent, parts)
            del parts
            store.close()
        return Chunk(*piece, places, sealed, 0, is_free)

    return make


def bytes_of(*places):
    store = Store().fill(1)
    data = b"".join(store.block(place) for place in places)
    store.close()
    return (Data(), data)


def manifest(**changes):
    whole = Manifest(layout(), "raw", 0, 33 * SIZE, b"")
    return msgspec.structs.replace(whole, **changes)


MAPPED = manifest()
STREAM = manifest(attach=b"stream")
END = Finish(2, b"tail")

WRONG = {
    "another layout": [manifest(layout=layout(model="other"))],
    "an unknown format": [manifest(wire="zip")],
    "no manifest": [chunk()],
    "finished before it began": [END],
    "a second manifest": [MAPPED, MAPPED],
    "too early a chunk": [MAPPED, chunk(first=1)],
    "the first chunk twice": [MAPPED, chunk(places=(1,)), chunk(places=(1,))],
    "a layer twice": [MAPPED, chunk(layers=(0, 1)), chunk(layers=(0, 1))],
    "a layer left out": [MAPPED, chunk(layers=(1, 1))],
    "a layer that is not there": [MAPPED, chunk(layers=(0, 3))],
    "layers are missing": [MAPPED, chunk(layers=(0, 1)), END],
    "more blocks than wanted": [MAPPED, chunk(places=(1, 2, 3))],
    "blocks that the store lacks": [MAPPED, chunk(places=(1, 33))],
    "places and count differ": [MAPPED, chunk(places=(1,), count=2)],
    "no payload": [STREAM, chunk(), END],
    "a payload too short": [STREAM, chunk(), (Data(), bytes(2 * SIZE - 1))],
    "a payload too long": [STREAM, chunk(), (Data(), bytes(2 * SIZE + 1))],
    "a payload for nothing": [MAPPED, chunk(), bytes_of(1, 2)],
    "bytes of other blocks": [STREAM, chunk(), bytes_of(1, 3)],
    "a chunk without a credit": [
        MAPPED,
        chunk(places=(1,), is_free=False),
        chunk(first=1, places=(2,), is_free=False),
    ],
    "credits that it does not have": [MAPPED, Ready(0, 2)],
    "a credit given back twice": [Ready(0, 1), Ready(0, 1)],
    "no digest": [MAPPED, chunk(tag=b"")],
    "a wrong digest": [MAPPED, chunk(tag=bytes(16))],
    "too few blocks": [MAPPED, chunk(places=(1,)), END],
    "another total": [MAPPED, chunk(), Finish(3, b"")],
    "confirmed without an ack": [MAPPED, chunk(), Acked()],
    "finished twice": [MAPPED, chunk(), END, END],
    "an ack from the giver": [MAPPED, Ack()],
    "a fetch from the giver": [Fetch("h", 0, PRINT, 0, 4, "inproc")],
    "aborted after the end": [MAPPED, chunk(), END, Abort("data_loss", "withdrawn")],
    "aborted in place of bytes": [STREAM, chunk(), Abort("data_loss", "withdrawn")],
}


async def converse(lines, heard=None) -> bytes:
    source, target = Store().fill(1), Store()
    giver = ScriptedGiver(source, lines)
    giver.heard = [] if heard is None else heard
    own = InstanceId("taker@0")
    clock = MonotonicClock()
    receiver = build_receiver(own, CALM, SECRET, clock, [Scripted({InstanceId("giver@0"): giver})])
    ref = ref_to("giver@0", Endpoint(), 2, target.layout)
    try:
        tail = await receiver.fetch(
            ref, target, [4, 5], 0, lambda _: None, clock.now() + CALM.timeout_s
        )
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
    assert await converse([MAPPED, chunk(), END, Acked()]) == b"tail"
    assert await converse([STREAM, chunk(), bytes_of(1, 2), END, Acked()]) == b"tail"
    lines = [Wait(), MAPPED, Wait(), chunk(places=(1,)), Wait(), chunk(1, (2,)), END, Wait()]
    assert await converse([*lines, Acked()]) == b"tail"
    layered = [chunk(layers=(0, 1)), chunk(0, (1,), layers=(1, 1)), chunk(1, (2,), layers=(1, 1))]
    assert await converse([MAPPED, *layered, END, Acked()]) == b"tail"


async def test_an_ack_is_the_last_word_however_late_it_is_confirmed():
    def late(_: Channel) -> Wait:
        time.sleep(3 * CALM.heartbeat_s)
        return Wait()

    heard: list[Message] = []
    assert await converse([MAPPED, chunk(), END, late, late, Acked()], heard) == b"tail"
    assert isinstance(heard[-1], Ack)
    assert sum(isinstance(message, Ack) for message in heard) == 1


@pytest.mark.parametrize("name", WRONG)
async def test_a_giver_that_says_wrong_things(name):
    with pytest.raises(TransferError):
        await converse(WRONG[name])


async def test_a_store_that_is_smaller_than_announced_reads_short():
    store = Store(5)
    source = FileSource(os.dup(store.fd))
    with pytest.raises(TransferError, match="shorter"):
        source.read(
            [Extent(4 * SIZE, SIZE), Extent(499 * SIZE, SIZE)], [memoryview(bytearray(2 * SIZE))]
        )
    source.close()
    store.close()


# -- takers


async def as_taker(both, *lines):
    """Say ``lines`` to a real outbox; what it answers until it closes the connection."""

    def talk():
        channel = Channel(both.outbox.connect(), MonotonicClock(), CALM.timeout_s)
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
        (Fetch("h", 0, PRINT, 0, 4, "shm"), Fetch("h", 0, PRINT, 0, 4, "shm")),
        (Fetch("h", 0, PRINT, 0, 8, "shm"), Ack()),
        (Fetch("h", 0, PRINT, 0, 4, "shm"), Finish(1, b"")),
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
        heard = await as_taker(both, Fetch("h", 0, PRINT, 0, 2**40, "shm"))
        assert isinstance(heard[-1], Abort)
        assert both.released["h"] == ["failed"]
