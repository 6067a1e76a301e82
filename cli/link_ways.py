"""Ways whose quickness is measured: whole transfers, and what bounds them: a plain copy in memory,
the kernel's copy between processes, a bare socket.

Each moves blocks of one size, in no order, and says how long that took. Knows neither how often it
is asked nor what becomes of the figures.
"""

import ctypes
import os
import random
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from cli.link_peer import ASK, BARE_BYTES, Blocks, Offers, Pool
from kvtransfer.receiver import Receiver
from kvtransfer.transports.transport import address_of
from triptych.core.clock import MonotonicClock
from triptych.core.errors import InstanceLost
from triptych.core.handoff import Endpoint, TransferRef
from triptych.core.ids import Handle, InstanceId

TIMEOUT_S = 60.0

Propose = Callable[[Offers], Awaitable[None]]
"""Makes the giver offer something."""


class Way(Protocol):
    """What is measured."""

    name: str

    async def move(self, block_bytes: int, count: int) -> float:
        """Move ``count`` blocks at once; the seconds it took."""
        ...

    async def move_singly(self, block_bytes: int, count: int) -> list[float]:
        """Move one block after the other; the seconds of each."""
        ...


class Memcpy:
    """A copy from one pool into another by one thread."""

    name = "memcpy"

    def __init__(self, theirs: Pool, ours: Pool) -> None:
        self._theirs, self._ours = theirs, ours

    async def move(self, block_bytes: int, count: int) -> float:
        """See ``Way``."""
        theirs, ours = self._theirs.blocks(block_bytes), self._ours.blocks(block_bytes)
        moves = list(zip(drawn(theirs, count), drawn(ours, count), strict=True))
        start_s = time.perf_counter()
        for source, target in moves:
            ours.block(target)[:] = theirs.block(source)
        return time.perf_counter() - start_s

    async def move_singly(self, block_bytes: int, count: int) -> list[float]:
        """See ``Way``."""
        return [await self.move(block_bytes, 1) for _ in range(count)]


class _Vector(ctypes.Structure):
    """``struct iovec``."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


_readv = ctypes.CDLL(None, use_errno=True).process_vm_readv
_readv.restype = ctypes.c_ssize_t
_vector = ctypes.POINTER(_Vector)
_readv.argtypes = (ctypes.c_int, _vector, ctypes.c_ulong, _vector, ctypes.c_ulong, ctypes.c_ulong)


class Cma:
    """The kernel's copy out of another process (``process_vm_readv``), with nothing around it: the
    most that a way which does not map the other's memory, as UCX's on one host, can have."""

    name = "cma"

    def __init__(self, pid: int, address: int, ours: Pool) -> None:
        self._pid, self._address, self._ours = pid, address, ours

    async def move(self, block_bytes: int, count: int) -> float:
        """See ``Way``."""
        ours = self._ours.blocks(block_bytes)
        start = address_of(ours.view)
        moves = [
            (
                _Vector(start + target * block_bytes, block_bytes),
                _Vector(self._address + place * block_bytes, block_bytes),
            )
            for target, place in zip(drawn(ours, count), drawn(ours, count), strict=True)
        ]
        start_s = time.perf_counter()
        for near, far in moves:
            if _readv(self._pid, near, 1, far, 1, 0) != block_bytes:
                raise InstanceLost(f"process_vm_readv: {os.strerror(ctypes.get_errno())}")
        return time.perf_counter() - start_s

    async def move_singly(self, block_bytes: int, count: int) -> list[float]:
        """See ``Way``."""
        return [await self.move(block_bytes, 1) for _ in range(count)]


class BareSocket:
    """Bytes over TCP, with nothing around them: a question of 16 bytes, then blocks."""

    name = "socket"

    def __init__(self, host: str, port: int, ours: Pool) -> None:
        self._sock = socket.create_connection((host, port), TIMEOUT_S)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._ours = ours

    async def move(self, block_bytes: int, count: int) -> float:
        """See ``Way``."""
        ours = self._ours.blocks(block_bytes)
        targets = [ours.block(place) for place in drawn(ours, count)]
        start_s = time.perf_counter()
        self._sock.sendall(ASK.pack(block_bytes, count))
        for target in targets:
            rest = target
            while rest:
                got = self._sock.recv_into(rest[:BARE_BYTES])
                if not got:
                    raise InstanceLost("the other process has ended")
                rest = rest[got:]
        return time.perf_counter() - start_s

    async def move_singly(self, block_bytes: int, count: int) -> list[float]:
        """See ``Way``."""
        return [await self.move(block_bytes, 1) for _ in range(count)]

    def close(self) -> None:
        """End the connection."""
        self._sock.close()


class Transfers:
    """Fetches of one receiver, which knows one way only, from one giver."""

    def __init__(self, name: str, receiver: Receiver, ours: Pool) -> None:
        self.name = name
        self._receiver = receiver
        self._ours = ours
        self._count = 0
        self._giver = InstanceId("")
        self._endpoint = Endpoint()
        self._propose: Propose | None = None

    def reach(self, giver: InstanceId, endpoint: Endpoint, propose: Propose) -> "Transfers":
        """From whom to fetch."""
        self._giver, self._endpoint, self._propose = giver, endpoint, propose
        return self

    async def move(self, block_bytes: int, count: int) -> float:
        """See ``Way``."""
        (handle,) = await self._offered(block_bytes, count, 1)
        return await self._fetch(handle, block_bytes, count)

    async def move_singly(self, block_bytes: int, count: int) -> list[float]:
        """See ``Way``."""
        handles = await self._offered(block_bytes, 1, count)
        return [await self._fetch(handle, block_bytes, 1) for handle in handles]

    async def _offered(self, block_bytes: int, num_blocks: int, count: int) -> list[str]:
        assert self._propose is not None
        theirs = self._ours.blocks(block_bytes)  # which look like ours
        handles = [f"{self.name} {number}" for number in range(self._count, self._count + count)]
        self._count += count
        blocks = {handle: drawn(theirs, num_blocks) for handle in handles}
        await self._propose(Offers(block_bytes, blocks))
        return handles

    async def _fetch(self, handle: str, block_bytes: int, count: int) -> float:
        ours = self._ours.blocks(block_bytes)
        look = ours.layout.fingerprint
        ref = TransferRef(Handle(handle), 0, self._giver, self._endpoint, look, count)
        blocks, until_s = drawn(ours, count), MonotonicClock().now() + TIMEOUT_S
        start_s = time.perf_counter()
        await self._receiver.fetch(ref, ours, blocks, 0, None, until_s)
        return time.perf_counter() - start_s


def drawn(blocks: Blocks, count: int) -> list[int]:
    """So many blocks, in no order."""
    return random.sample(range(blocks.num_blocks), count)
