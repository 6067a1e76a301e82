"""Through torch.distributed, point to point: NCCL between GPUs, or another backend by its name.

Every store that a connection gives has a process group of its own, of giver and taker, who find
each other by a token that is in the manifest only. The group's own connections authenticate nobody:
it is the chunk's tag that tells right bytes from others, so digests belong on wherever the network
is not trusted.
"""

import math
from collections.abc import Iterator, Sequence
from socket import socket

import msgspec

from kvtransfer.channel import Address, Channel
from kvtransfer.manifest import Manifest
from kvtransfer.transports.process_group import GIVER, TAKER, Pair, is_usable
from kvtransfer.transports.rendezvous import Meeting, meet
from kvtransfer.transports.tcp import Tcp
from kvtransfer.transports.transport import (
    Extent,
    WayBroken,
    breaking,
    hear_parting,
    slices,
    split,
)
from triptych.core.config import TransferConfig
from triptych.core.errors import InstanceLost, TransferError
from triptych.core.handoff import TransferRef
from triptych.core.ports import BlockMemory

GATHER_BYTES = 1 << 20
"""Extents gather up to this size into one message."""
ALONE_BYTES = 1 << 18
"""An extent of this size goes alone, without a copy."""


class Attached(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Where the taker meets the giver, and what it shows there."""

    port: int
    token: bytes


class NcclCarrier:
    """The giver's side of one connection."""

    poll_s = math.inf

    def __init__(self, channel: Channel, config: TransferConfig) -> None:
        self._channel = channel
        self._config = config
        self._meetings: dict[int, tuple[BlockMemory, Meeting]] = {}
        self._pairs: dict[int, Pair] = {}

    def attach(self, memory: BlockMemory) -> bytes:
        """See ``transport.Carrier``."""
        if id(memory) not in self._meetings:
            self._meetings[id(memory)] = memory, Meeting(self._config.host)
        meeting = self._meetings[id(memory)][1]
        return msgspec.msgpack.encode(Attached(meeting.port, meeting.token))

    def push(self, memory: BlockMemory, extents: Sequence[Extent]) -> None:
        """See ``transport.Carrier``."""
        self._channel.flush()
        if id(memory) not in self._pairs:
            self._pairs[id(memory)] = self._join(self._meetings[id(memory)][1])
        messages = [slices(memory.view, message) for message in gathered(extents)]
        self._pairs[id(memory)].send(messages, self._check)

    def _join(self, meeting: Meeting) -> Pair:
        timeout_s = self._config.timeout_s
        # A taker that cannot join waits for our answer for as long: leave it time to come.
        exchange = meeting.await_taker(timeout_s / 2, self._check)
        meeting.close()
        return Pair(self._config.nccl_backend, exchange, GIVER, timeout_s)

    def _check(self) -> None:
        self._channel.check()
        if self._channel.is_cut:
            raise InstanceLost("the taker closed the connection")

    def poll(self) -> None:
        """See ``transport.Carrier``."""

    def close(self) -> None:
        """See ``transport.Carrier``."""
        while self._pairs:
            self._pairs.popitem()[1].close()
        while self._meetings:
            self._meetings.popitem()[1][1].close()


class NcclSource:
    """The taker's side of one store. The group is made with the first chunk, because only then the
    giver is sure to join it."""

    view = None

    def __init__(
        self, attached: Attached, host: str, channel: Channel, config: TransferConfig
    ) -> None:
        self._attached = attached
        self._host = host
        self._channel = channel
        self._config = config
        self._pair: Pair | None = None

    def read(self, theirs: Sequence[Extent], ours: Sequence[memoryview]) -> None:
        """See ``transport.Source``."""
        messages, rest = [], list(ours)
        for message in gathered(theirs):
            part, rest = split(rest, sum(extent.length for extent in message))
            messages.append(part)
        try:
            with breaking(self._channel):
                self._joined().receive(messages, self._channel.check)
        except (WayBroken, InstanceLost):
            self.close()  # from here on nobody writes into ours
            self._channel.check()
            hear_parting(self._channel)
            raise

    def close(self) -> None:
        """See ``transport.Source``."""
        if self._pair is not None:
            self._pair.close()
        self._pair = None

    def _joined(self) -> Pair:
        if self._pair is None:
            at, timeout_s = self._attached, self._config.timeout_s
            exchange = meet(self._host, at.port, at.token, timeout_s)
            self._pair = Pair(self._config.nccl_backend, exchange, TAKER, timeout_s)
        return self._pair


class Nccl:
    """Instances whose torch has the same backend; the conversation runs over TCP."""

    name = "nccl"

    def __init__(self, config: TransferConfig) -> None:
        self._config = config
        self._tcp = Tcp(config.timeout_s)

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
        return NcclSource(attached, ref.endpoint.host, channel, self._config)

    def carrier(self, channel: Channel) -> NcclCarrier:
        """See ``transport.Transport``."""
        return NcclCarrier(channel, self._config)

    def close(self) -> None:
        """Everything is of one connection."""


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
