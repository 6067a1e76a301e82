"""The other end of a measured link: offers blocks, and sends bytes over a bare socket.

``python -m cli.link_peer`` with its settings and what to offer as lines of JSON on standard input;
it ends with it. Knows the outbox, and nothing of time.
"""

import asyncio
import mmap
import random
import socket
import struct
import sys
import threading

import msgspec

from kvtransfer.build import build_outbox
from kvtransfer.sender import Outbox
from kvtransfer.staging import Slots
from kvtransfer.transports.transport import address_of
from triptych.core.clock import MonotonicClock
from triptych.core.config import TransferConfig
from triptych.core.handoff import Endpoint
from triptych.core.host_bytes import HostBytes
from triptych.core.ids import BlockId, Handle, InstanceId
from triptych.core.layout import Layout

GIVER = InstanceId("links-giver@0")
LINE_BYTES = 1 << 24
BARE_BYTES = 1 << 20
"""Sent and read at a time on the bare socket: with more it was seen to be a third slower."""
ASK = struct.Struct("<QQ")
"""On the bare socket: bytes of a block, and how many are wanted."""


class Start(msgspec.Struct, frozen=True):
    """The first line."""

    config: TransferConfig
    secret: str
    pool_bytes: int
    huge: bool


class Offers(msgspec.Struct, frozen=True):
    """Every other line: handles to offer, each with blocks of ``block_bytes``."""

    block_bytes: int
    blocks: dict[str, list[int]]


class Started(msgspec.Struct, frozen=True):
    """The answer to the first line; others are answered with an empty one."""

    endpoint: Endpoint
    socket_port: int
    address: int
    """Of the pool, in the memory of that process."""


class Pool:
    """Memory that is looked at as blocks of one size or another: a sealed memfd as the stores of a
    CPU are, or ``huge`` pages that only this process has."""

    def __init__(self, seed: int, num_bytes: int, *, huge: bool = False) -> None:
        self._slots = None if huge else Slots(num_bytes, 1)
        self.view = memoryview(b"")
        if self._slots is not None:
            self.view = self._slots.view
        else:
            own = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            own.madvise(mmap.MADV_HUGEPAGE)
            self.view = memoryview(own)
        self.fd = -1 if self._slots is None else self._slots.fd
        pattern = random.Random(seed).randbytes(1 << 20)
        for at in range(0, num_bytes, len(pattern)):  # touches every page
            self.view[at : at + len(pattern)] = pattern
            self.view[at : at + 8] = at.to_bytes(8, "little")
        self._looks: dict[int, Blocks] = {}

    def blocks(self, block_bytes: int) -> "Blocks":
        """The same store every time."""
        if block_bytes not in self._looks:
            self._looks[block_bytes] = Blocks(self, block_bytes)
        return self._looks[block_bytes]

    def close(self) -> None:
        """Give the memory back."""
        self._looks.clear()
        self.view = memoryview(b"")
        if self._slots is not None:
            self._slots.close()


class Blocks(HostBytes):
    """A pool as blocks of one size. Implements ``core.ports.BlockMemory``."""

    def __init__(self, pool: Pool, block_bytes: int) -> None:
        self.layout = Layout("embedding", "links", "uint8", (1, block_bytes), 1)
        self.num_blocks = len(pool.view) // block_bytes
        self.view = pool.view
        self.fd = pool.fd

    def block(self, number: int) -> memoryview:
        """Bytes of one block."""
        size = self.layout.block_bytes
        return self.view[number * size : (number + 1) * size]


def offer(outbox: Outbox, pool: Pool, offers: Offers) -> None:
    """Offer everything at once, finished."""
    memory = pool.blocks(offers.block_bytes)
    for handle, blocks in offers.blocks.items():
        made = outbox.offer(Handle(handle), 0, memory, "links", _released)
        made.append([BlockId(block) for block in blocks])
        made.finish()


def _released(_: str) -> None:
    """Nobody waits for it."""


def send_bare(listener: socket.socket, pool: Pool) -> None:
    """Send blocks of the pool, one behind the other, to the one who connects."""
    sock = listener.accept()[0]
    listener.close()
    with sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while asked := sock.recv(ASK.size, socket.MSG_WAITALL):
            size, count = ASK.unpack(asked)
            blocks = pool.blocks(size)
            for number in range(count):
                block = blocks.block(number)
                for at in range(0, size, BARE_BYTES):
                    sock.sendall(block[at : at + BARE_BYTES])


async def main() -> None:
    """Serve until standard input ends."""
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader(limit=LINE_BYTES)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    start = msgspec.json.decode(await lines.readline(), type=Start)
    clock, pool = MonotonicClock(), Pool(1, start.pool_bytes, huge=start.huge)
    outbox = build_outbox(
        GIVER, start.config, start.secret.encode(), clock, loop.call_soon_threadsafe
    )
    listener = socket.create_server((start.config.host, 0))
    bare = threading.Thread(target=send_bare, args=(listener, pool), daemon=True)
    bare.start()
    say(Started(outbox.start(), listener.getsockname()[1], address_of(pool.view)))
    while line := await lines.readline():
        offer(outbox, pool, msgspec.json.decode(line, type=Offers))
        say({})
    await outbox.close()


def say(answer: object) -> None:
    """One line of standard output."""
    sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    asyncio.run(main())
