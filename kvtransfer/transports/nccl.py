"""Through torch.distributed, point to point: NCCL between GPUs, or another backend by its name.

Every store that a connection gives has a process group of its own, of giver and taker, who find each
other at the giver's host under a name that is in the manifest only. A group authenticates nobody: it
is the chunk's tag that tells right bytes from others, so digests belong on wherever the network is
not trusted.
"""

import math
import secrets
import threading
from collections.abc import Iterator, Sequence
from socket import socket
from typing import Any

import msgspec

from kvtransfer.channel import Address, Channel
from kvtransfer.manifest import Manifest
from kvtransfer.transports.process_group import Pair, host_store, is_usable, reach_store
from kvtransfer.transports.tcp import Tcp
from kvtransfer.transports.transport import Extent, slices, split
from triptych.core.config import TransferConfig
from triptych.core.errors import InstanceLost, TransferError
from triptych.core.handoff import TransferRef
from triptych.core.ports import BlockMemory

GATHER_BYTES = 1 << 20
"""Extents gather up to this size into one message."""
ALONE_BYTES = 1 << 18
"""An extent of this size goes alone, without a copy."""


class Attached(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Where the taker finds the giver's store of rendezvous, and under which name."""

    host: str
    port: int
    prefix: str


class NcclCarrier:
    """The giver's side of one connection."""

    poll_s = math.inf

    def __init__(self, nccl: "Nccl", channel: Channel) -> None:
        self._nccl = nccl
        self._channel = channel
        self._attached: dict[int, tuple[BlockMemory, Attached]] = {}
        self._pairs: dict[int, Pair] = {}

    def attach(self, memory: BlockMemory) -> bytes:
        """See ``transport.Carrier``."""
        if id(memory) not in self._attached:
            self._attached[id(memory)] = memory, self._nccl.meeting_point()
        return msgspec.msgpack.encode(self._attached[id(memory)][1])

    def push(self, memory: BlockMemory, extents: Sequence[Extent]) -> None:
        """See ``transport.Carrier``."""
        if id(memory) not in self._pairs:
            self._pairs[id(memory)] = self._nccl.join(self._attached[id(memory)][1])
        messages = [slices(memory.view, message) for message in gathered(extents)]
        self._pairs[id(memory)].send(messages, self._channel.check)

    def poll(self) -> None:
        """See ``transport.Carrier``."""

    def close(self) -> None:
        """See ``transport.Carrier``."""
        while self._pairs:
            self._pairs.popitem()[1].close()


class NcclSource:
    """The taker's side of one store. The group is made with the first chunk, because only then the
    giver is sure to join it."""

    def __init__(self, attached: Attached, channel: Channel, config: TransferConfig) -> None:
        self._attached = attached
        self._channel = channel
        self._config = config
        self._store: Any = None
        self._pair: Pair | None = None

    def read(self, theirs: Sequence[Extent], ours: Sequence[memoryview]) -> None:
        """See ``transport.Source``."""
        messages, rest = [], list(ours)
        for message in gathered(theirs):
            part, rest = split(rest, sum(extent.length for extent in message))
            messages.append(part)
        try:
            self._joined().receive(messages, self._channel.check)
        except InstanceLost:
            self.close()  # from here on nobody writes into ours
            self._channel.check()
            raise

    def close(self) -> None:
        """See ``transport.Source``."""
        if self._pair is not None:
            self._pair.close()
        self._pair = self._store = None

    def _joined(self) -> Pair:
        if self._pair is None:
            at, timeout_s = self._attached, self._config.timeout_s
            self._store = reach_store(at.host, at.port, timeout_s)
            self._pair = Pair(self._config.nccl_backend, self._store, at.prefix, 1, timeout_s)
        return self._pair


class Nccl:
    """Instances whose torch has the same backend; the conversation runs over TCP."""

    name = "nccl"

    def __init__(self, config: TransferConfig) -> None:
        self._config = config
        self._tcp = Tcp(config.timeout_s)
        self._lock = threading.Lock()
        self._store: Any = None
        self._port = 0

    @staticmethod
    def is_usable(config: TransferConfig) -> bool:
        """Whether torch has the configured backend here."""
        return is_usable(config.nccl_backend)

    def can_reach(self, ref: TransferRef) -> bool:
        """See ``transport.Transport``."""
        return self.name in ref.endpoint.ways and self._tcp.can_reach(ref)

    def dial(self, ref: TransferRef) -> tuple[socket, Address | None]:
        """See ``transport.Transport``."""
        return self._tcp.dial(ref)

    def source(self, channel: Channel, manifest: Manifest, ref: TransferRef) -> NcclSource:
        """See ``transport.Transport``."""
        try:
            attached = msgspec.msgpack.decode(manifest.attach, type=Attached)
        except msgspec.MsgspecError as error:
            raise TransferError("manifest: not what nccl attaches") from error
        if attached.host != ref.endpoint.host:
            raise TransferError("manifest: a rendezvous at another host")
        return NcclSource(attached, channel, self._config)

    def carrier(self, channel: Channel) -> NcclCarrier:
        """See ``transport.Transport``."""
        return NcclCarrier(self, channel)

    def close(self) -> None:
        """See ``transport.Transport``."""
        with self._lock:
            self._store = None

    def meeting_point(self) -> Attached:
        """A new name at this instance's store of rendezvous, which is started with the first."""
        with self._lock:
            if self._store is None:
                self._store, self._port = host_store(self._config.host, self._config.timeout_s)
            return Attached(self._config.host, self._port, secrets.token_hex(16))

    def join(self, at: Attached) -> Pair:
        """The giver's end of a pair, once the taker has come. Raises InstanceLost."""
        with self._lock:
            store = self._store
        if store is None:
            raise InstanceLost("the instance stops")
        return Pair(self._config.nccl_backend, store, at.prefix, 0, self._config.timeout_s)


def gathered(extents: Sequence[Extent]) -> Iterator[list[Extent]]:
    """The messages that ``extents`` go in: the same ones on both sides, as both know them."""
    message: list[Extent] = []
    room = GATHER_BYTES
    for extent in extents:
        is_large = extent.length >= ALONE_BYTES
        if message and (is_large or extent.length > room):
            yield message
            message, room = [], GATHER_BYTES
        message.append(extent)
        room -= extent.length
        if is_large:
            yield message
            message, room = [], GATHER_BYTES
    if message:
        yield message
