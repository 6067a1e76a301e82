"""Faults on the way: decorators of a transport, and a relay that mangles frames of a stream."""

import asyncio
import random
import threading
import time
from collections.abc import Callable
from contextlib import asynccontextmanager

from kvtransfer import manifest
from kvtransfer.manifest import HEADER_BYTES, PREFIX_BYTES
from tests.kvtransfer.stores import layout
from triptych.core.errors import InstanceLost
from triptych.core.handoff import Endpoint


class Faulty:
    """A transport whose sources do ``fault(source, theirs, targets)`` in place of reading."""

    def __init__(self, inner, fault) -> None:
        self._inner = inner
        self._fault = fault
        self.name = inner.name
        self.can_reach = inner.can_reach
        self.dial = inner.dial

    def source(self, channel, announced, ref):
        return _FaultySource(self._inner.source(channel, announced, ref), self._fault)


class _FaultySource:
    def __init__(self, inner, fault) -> None:
        self._inner = inner
        self._fault = fault
        self.close = inner.close

    def read(self, theirs, targets) -> None:
        self._fault(self._inner, theirs, targets)


def corrupt(seed: int):
    """One bit of what arrived is another."""
    rng = random.Random(seed)

    def fault(source, theirs, targets):
        source.read(theirs, targets)
        target = rng.choice(targets)
        target[rng.randrange(len(target))] ^= 1 << rng.randrange(8)

    return fault


def truncate(seed: int):
    """The last bytes do not arrive; what was there before stays."""
    rng = random.Random(seed)

    def fault(source, theirs, targets):
        before = bytes(targets[-1])
        source.read(theirs, targets)
        missing = rng.randint(1, len(before))
        targets[-1][-missing:] = before[-missing:]

    return fault


def swap(seed: int):
    """Two blocks of a chunk arrive in each other's place."""
    rng = random.Random(seed)

    def fault(source, theirs, targets):
        source.read(theirs, targets)
        data = b"".join(targets)
        size = layout().block_bytes
        blocks = [data[at : at + size] for at in range(0, len(data), size)]
        a, b = rng.sample(range(len(blocks)), 2)
        blocks[a], blocks[b] = blocks[b], blocks[a]
        data = b"".join(blocks)
        for target in targets:
            target[:], data = data[: len(target)], data[len(target) :]

    return fault


def replay(_seed: int):
    """Every chunk behind the first brings the bytes of the first once more."""
    first: list[bytes] = []

    def fault(source, theirs, targets):
        source.read(theirs, targets)
        if not first:
            first.append(b"".join(targets))
            return
        data = first[0]
        for target in targets:
            target[:], data = data[: len(target)], data[len(target) :]

    return fault


def fail(_seed: int):
    """The source breaks."""

    def fault(source, theirs, targets):
        raise InstanceLost("the source broke")

    return fault


class Slow:
    """Writes for ``num_turns`` of 5 ms and says so, to be interrupted in the middle; right in the
    end."""

    def __init__(self, num_turns: int = 40) -> None:
        self.num_turns = num_turns
        self.is_writing = threading.Event()
        self.num_writes = 0

    def __call__(self, source, theirs, targets) -> None:
        source.read(theirs, targets)
        for _ in range(self.num_turns):
            for target in targets:
                target[0] ^= 255
                self.num_writes += 1
            self.is_writing.set()
            time.sleep(0.005)


Mangle = Callable[[int, bytes], list[bytes] | None]
"""``(number of the frame, its bytes) -> frames to send instead``; None cuts the connection."""


@asynccontextmanager
async def relay(endpoint: Endpoint, down: Mangle, up: Mangle = lambda _, frame: [frame]):
    """A TCP endpoint in front of ``endpoint`` whose frames to (``up``) and from it (``down``) are
    mangled."""
    tasks: set[asyncio.Task] = set()

    async def pump(reader, writer, mangle):
        number = 0
        try:
            while True:
                frame = await _frame(reader)
                frames = mangle(number, frame)
                if frames is None:
                    break
                for each in frames:
                    writer.write(each)
                await writer.drain()
                number += 1
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def serve(reader, writer):
        far_reader, far_writer = await asyncio.open_connection(endpoint.host, endpoint.port)
        pumps = [
            asyncio.create_task(pump(reader, far_writer, up)),
            asyncio.create_task(pump(far_reader, writer, down)),
        ]
        tasks.update(pumps)
        await asyncio.wait(pumps)
        for each in (writer, far_writer):
            each.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield Endpoint(host="127.0.0.1", port=server.sockets[0].getsockname()[1])
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()
        await asyncio.sleep(0.01)


async def _frame(reader) -> bytes:
    header = await reader.readexactly(HEADER_BYTES)
    prefix = manifest.parse_prefix(header[:PREFIX_BYTES], manifest.MAX_BODY_BYTES)
    return header + await reader.readexactly(prefix.body_bytes + prefix.payload_bytes)
