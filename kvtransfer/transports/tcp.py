"""Across hosts: the bytes follow in the connection's stream, received straight into the taker's
memory. Also what ways fall back to for a store that they cannot share."""

import math
import socket
from collections.abc import Sequence

from kvtransfer.channel import Address, Channel
from kvtransfer.manifest import Abort, Data, Manifest
from kvtransfer.transports.transport import Extent, Parted, slices
from triptych.core.errors import TransferError
from triptych.core.handoff import TransferRef
from triptych.core.ports import BlockMemory


def listen(host: str) -> socket.socket:
    """A listener on a free port of ``host``, which is an address of this machine."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    listener.bind((host, 0))
    listener.listen(1024)
    listener.setblocking(False)
    return listener


def tune(sock: socket.socket, timeout_s: float) -> None:
    """Small frames leave at once; a peer whose machine is gone is noticed by the kernel too."""
    timeout_ms = max(1, round(timeout_s * 1000))
    idle_s = max(1, round(timeout_s))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle_s)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, idle_s)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout_ms)


class StreamSource:
    """Bytes that follow their Chunk in a Data frame."""

    view = None

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def read(self, theirs: Sequence[Extent], ours: Sequence[memoryview]) -> None:
        """See ``transport.Source``."""
        message, payload_bytes = self._channel.receive()
        if isinstance(message, Abort):
            raise Parted(message)
        if not isinstance(message, Data):
            raise TransferError(f"{type(message).__name__} where the bytes of a chunk belong")
        if payload_bytes != sum(extent.length for extent in theirs):
            raise TransferError(f"{payload_bytes} bytes where a chunk announced others")
        self._channel.receive_payload(ours)

    def close(self) -> None:
        """Nothing was opened."""


class StreamCarrier:
    """Sends the bytes of a chunk in a Data frame behind it."""

    poll_s = math.inf

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def attach(self, memory: BlockMemory) -> bytes:  # noqa: ARG002
        """See ``transport.Carrier``."""
        return b""

    def push(self, memory: BlockMemory, extents: Sequence[Extent]) -> None:
        """See ``transport.Carrier``."""
        self._channel.send(Data(), slices(memory.view, extents))

    def poll(self) -> None:
        """See ``transport.Carrier``."""

    def close(self) -> None:
        """Nothing was opened."""


class Tcp:
    """TCP to the address that the instance announces."""

    name = "tcp"

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s

    def can_reach(self, ref: TransferRef) -> bool:
        """See ``transport.Transport``."""
        return bool(ref.endpoint.host) and ref.endpoint.port > 0

    def dial(self, ref: TransferRef) -> tuple[socket.socket, Address | None]:
        """See ``transport.Transport``."""
        family = socket.AF_INET6 if ":" in ref.endpoint.host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        tune(sock, self._timeout_s)
        return sock, (ref.endpoint.host, ref.endpoint.port)

    def source(self, channel: Channel, manifest: Manifest, ref: TransferRef) -> StreamSource:  # noqa: ARG002
        """See ``transport.Transport``."""
        return StreamSource(channel)

    def carrier(self, channel: Channel) -> StreamCarrier:
        """See ``transport.Transport``."""
        return StreamCarrier(channel)

    def close(self) -> None:
        """Nothing was opened."""
