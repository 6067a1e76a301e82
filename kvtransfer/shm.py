"""On one host: the giver passes its store's memfd once per connection, the taker reads blocks.

``preadv`` copies straight from the memfd's pages into the taker's blocks: one copy, outside the
interpreter lock, and a store that shrank reads short where a mapping would kill us (SIGBUS). The
taker gets a descriptor that is open for reading only. A store without memfd follows in the stream.
"""

import os
import secrets
import socket
import struct
from collections.abc import Sequence

from kvtransfer.channel import Address, Channel
from kvtransfer.manifest import Chunk, Manifest
from kvtransfer.tcp import StreamSource
from kvtransfer.transport import Source, machine_id, runs
from triptych.core.errors import InstanceLost, TransferError
from triptych.core.handoff import TransferRef


def listen() -> tuple[socket.socket, str]:
    """A listener in the abstract namespace and its unguessable name, without the leading NUL."""
    name = f"triptych-{secrets.token_hex(16)}"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    listener.bind(f"\0{name}")
    listener.listen(1024)
    listener.setblocking(False)
    return listener, name


def is_own_user(sock: socket.socket) -> bool:
    """Whether the peer of a Unix socket runs as the user that we are."""
    size = struct.calcsize("3i")
    _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return bool(uid == os.geteuid())


def readonly(fd: int) -> int:
    """Another descriptor of a memfd through which nobody can write. The caller closes it."""
    return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)


class FileSource:
    """The giver's store, read block by block."""

    def __init__(self, fd: int, num_blocks: int) -> None:
        self._fd = fd
        self._num_blocks = num_blocks

    def read(self, chunk: Chunk, targets: Sequence[memoryview]) -> None:
        """See ``transport.Source``."""
        size = sum(len(target) for target in targets) // chunk.num_blocks
        if len(chunk.blocks) != chunk.num_blocks or max(chunk.blocks) >= self._num_blocks:
            raise TransferError("chunk: blocks that the store does not have")
        rest = list(targets)
        for first, count in runs(chunk.blocks):
            part, rest = _split(rest, count * size)
            self._read_run(part, first * size)

    def _read_run(self, part: list[memoryview], offset: int) -> None:
        while part:
            try:
                count = os.preadv(self._fd, part[:512], offset)
            except OSError as error:
                raise InstanceLost(f"store: {error.strerror}") from error
            if count == 0:
                raise TransferError("store: shorter than announced")
            offset += count
            _, part = _split(part, count)

    def close(self) -> None:
        """See ``transport.Source``."""
        os.close(self._fd)


class Shm:
    """Shared memory of two processes of one machine."""

    name = "shm"

    def __init__(self) -> None:
        self._machine = machine_id()

    def can_reach(self, ref: TransferRef) -> bool:
        """See ``transport.Transport``."""
        return bool(ref.endpoint.path) and ref.endpoint.machine == self._machine != ""

    def dial(self, ref: TransferRef) -> tuple[socket.socket, Address | None]:
        """See ``transport.Transport``."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        return sock, f"\0{ref.endpoint.path}"

    def source(self, channel: Channel, manifest: Manifest, ref: TransferRef) -> Source:  # noqa: ARG002
        """See ``transport.Transport``."""
        if not manifest.is_mapped:
            return StreamSource(channel)
        if len(channel.descriptors) != 1:
            raise TransferError("manifest: no store came with it")
        return FileSource(channel.descriptors.pop(), manifest.store_blocks)


def _split(
    parts: Sequence[memoryview], num_bytes: int
) -> tuple[list[memoryview], list[memoryview]]:
    """The first ``num_bytes`` of ``parts`` and what is behind them."""
    head: list[memoryview] = []
    for index, part in enumerate(parts):
        if num_bytes < len(part):
            rest = [part[num_bytes:], *parts[index + 1 :]]
            return ([*head, part[:num_bytes]] if num_bytes else head), rest
        head.append(part)
        num_bytes -= len(part)
    return head, []
