"""Across hosts: the payload follows its frame, received straight into the taker's blocks."""

import socket
from collections.abc import Sequence

from kvtransfer.channel import Address, Channel
from kvtransfer.manifest import Chunk, Manifest
from triptych.core.errors import TransferError
from triptych.core.handoff import TransferRef


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
    """Blocks that follow in the stream."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def read(self, chunk: Chunk, targets: Sequence[memoryview]) -> None:
        """See ``transport.Source``."""
        if chunk.blocks:
            raise TransferError("chunk: names blocks of a store that was not opened")
        self._channel.receive_payload(targets)

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
        if manifest.is_mapped:
            raise TransferError("manifest: a store to map, over TCP")
        return StreamSource(channel)
