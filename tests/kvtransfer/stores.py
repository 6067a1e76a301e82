"""Block stores and pairs of outbox and receiver for the tests of this folder."""

import asyncio
import mmap
import os
import random
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import msgspec
import pytest

from kvtransfer.build import build_outbox, build_receiver, build_ways
from kvtransfer.receiver import Receiver
from kvtransfer.sender import Outbox
from kvtransfer.transports.nixl_agent import is_installed
from tests.patience import PATIENCE_S
from triptych.core.clock import MonotonicClock
from triptych.core.config import TransferConfig
from triptych.core.handoff import Endpoint, TransferRef
from triptych.core.host_bytes import HostBytes
from triptych.core.ids import Handle, InstanceId
from triptych.core.layout import Layout

SECRET = b"a secret of the cluster"
CALM = TransferConfig(heartbeat_s=0.05, timeout_s=PATIENCE_S, lease_s=PATIENCE_S)
"""Gives nobody up: whatever ends before ``PATIENCE_S`` was not ended by a time-out."""
QUICK = TransferConfig(heartbeat_s=0.05, timeout_s=2.0, lease_s=PATIENCE_S)
"""For tests of silence. Who is only slow, as on a busy machine, may look dead to it."""

NIXL = pytest.param(
    "nixl", marks=pytest.mark.skipif(not is_installed(), reason="nixl is not installed")
)
BETWEEN_PROCESSES = ("shm", "tcp", NIXL, "nccl")
EVERYWHERE = ("inproc", *BETWEEN_PROCESSES)
"""Ways, for parametrised tests. Gloo keeps NCCL's rules in the place of NCCL."""


def by(way: str, config: TransferConfig = CALM) -> TransferConfig:
    """``config`` for an instance that is to be reached by ``way``."""
    if way not in ("nixl", "nccl"):
        return config
    if way == "nccl":
        from tests.kvtransfer.transports import nccl_rules  # torch takes seconds

        nccl_rules.register()
        config = msgspec.structs.replace(config, nccl_backend=nccl_rules.NAME)
    return msgspec.structs.replace(config, transport=way)


def only(endpoint: Endpoint, way: str) -> Endpoint:
    """``endpoint`` as if it offered ``way`` alone."""
    if way == "shm":
        return Endpoint(path=endpoint.path, machine=endpoint.machine)
    assert way in ("tcp", *endpoint.ways)
    return Endpoint(endpoint.host, endpoint.port, ways=() if way == "tcp" else (way,))


def layout(width: int = 7, model: str = "m", dtype: str = "float32") -> Layout:
    return Layout("kv", model, dtype, (2, 2, 4, 1, width), 4)


class Store(HostBytes):
    """Blocks in a memfd, or (``plain``) in ordinary memory as a GPU's would be: without one."""

    def __init__(self, num_blocks: int = 33, of: Layout | None = None, *, plain: bool = False):
        self.layout = of or layout()
        self.num_blocks = num_blocks
        size = num_blocks * self.layout.block_bytes
        self._map: mmap.mmap | bytearray | bytes
        if plain:
            self.fd, self._map = -1, bytearray(size)
        else:
            self.fd = os.memfd_create("test")
            os.ftruncate(self.fd, size)
            self._map = mmap.mmap(self.fd, size)
        self.view = memoryview(self._map)

    def block(self, index: int) -> memoryview:
        size = self.layout.block_bytes
        return self.view[index * size : (index + 1) * size]

    def fill(self, seed: int) -> "Store":
        self.view[:] = random.Random(seed).randbytes(len(self.view))
        return self

    def close(self) -> None:
        """Slices of ``view`` in the traceback of an expected error may outlive this."""
        self.view, self._map = memoryview(b""), b""
        if self.fd >= 0:
            os.close(self.fd)


def ref_to(
    instance: str, endpoint: Endpoint, num_blocks: int, of: Layout, handle="h"
) -> TransferRef:
    return TransferRef(
        handle=Handle(handle),
        epoch=0,
        instance=InstanceId(instance),
        endpoint=endpoint,
        layout=of.fingerprint,
        num_tokens=num_blocks * of.block_size,
    )


@dataclass
class Pair:
    outbox: Outbox
    receiver: Receiver
    source: Store
    target: Store
    endpoint: Endpoint
    released: dict[str, list[str]] = field(default_factory=dict)

    def offer(self, handle="h", owner="job", epoch=0):
        self.released[handle] = []
        return self.outbox.offer(
            Handle(handle), epoch, self.source, owner, self.released[handle].append
        )

    def ref(self, num_blocks: int, handle="h") -> TransferRef:
        return ref_to("giver@0", self.endpoint, num_blocks, self.source.layout, handle)

    async def fetch(
        self, num_blocks, blocks, *, first=0, handle="h", seen=None, limit_s=PATIENCE_S
    ):
        deadline = MonotonicClock().now() + limit_s
        seen = [] if seen is None else seen
        ref = self.ref(num_blocks, handle)
        return await self.receiver.fetch(ref, self.target, blocks, first, seen.append, deadline)

    def assert_equal(self, theirs, ours):
        for a, b in zip(theirs, ours, strict=True):
            assert self.source.block(a) == self.target.block(b)

    async def assert_idle(self, within_s: float = PATIENCE_S):
        """Nothing is held by anybody on either side."""
        async with asyncio.timeout(within_s):
            while self.outbox.census() or self.receiver.census():
                await asyncio.sleep(0.01)


@asynccontextmanager
async def pair(
    way="shm", config=CALM, *, source=None, target=None, secret=SECRET, wrap=None, giver=None
):
    """``giver``: the outbox's config, where it is another."""
    config, giver = by(way, config), by(way, giver or config)
    clock = MonotonicClock()
    loop = asyncio.get_running_loop()
    outbox = build_outbox(InstanceId("giver@0"), giver, SECRET, clock, loop.call_soon_threadsafe)
    neighbours = {outbox.instance: outbox} if way == "inproc" else {}
    ways = build_ways(InstanceId("taker@0"), config, neighbours)
    given = ways if wrap is None else [wrap(each) for each in ways]
    receiver = build_receiver(InstanceId("taker@0"), config, secret, clock, given)
    endpoint = outbox.start()
    if way not in ("inproc", "auto"):
        endpoint = only(endpoint, way)
    both = Pair(outbox, receiver, source or Store().fill(1), target or Store().fill(2), endpoint)
    try:
        yield both
    finally:
        await receiver.close()
        for each in ways:
            each.close()
        await outbox.close()
        both.source.close()
        both.target.close()
