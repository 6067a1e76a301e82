"""On one host: the giver passes its store's memfd once per connection, the taker reads extents.

One copy, outside the interpreter lock: out of a mapping if the store is sealed, else by ``preadv``,
which was measured half as quick, but reads short where a mapping of a store that shrank would kill
us (SIGBUS). The taker's descriptor is open for reading only. A store without memfd follows in the
stream.
"""

import ctypes
import fcntl
import logging
import math
import mmap
import os
import secrets
import socket
import struct
import threading
from collections.abc import Sequence

from kvtransfer.channel import Address, Channel
from kvtransfer.manifest import Manifest
from kvtransfer.transports.tcp import StreamCarrier, StreamSource
from kvtransfer.transports.transport import Extent, Source, address_of, machine_id, split
from triptych.core.errors import InstanceLost, TransferError
from triptych.core.handoff import TransferRef
from triptych.core.ports import BlockMemory

log = logging.getLogger(__name__)

_memcpy = ctypes.CDLL(None).memcpy
_memcpy.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)

IN_FILE, IN_STREAM = b"file", b"stream"
"""What an attachment says: where the bytes of the store are."""


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
    """The giver's store, read extent by extent."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._mapped = _mapping(fd)
        self._start = 0 if self._mapped is None else address_of(self._mapped)

    @property
    def view(self) -> memoryview | None:
        """See ``transport.Source``."""
        return None if self._mapped is None else self._mapped.toreadonly()

    def read(self, theirs: Sequence[Extent], ours: Sequence[memoryview]) -> None:
        """See ``transport.Source``."""
        read = self._read_run if self._mapped is None else self._copy_run
        if [length for _, length in theirs] == list(map(len, ours)):  # the usual case
            for (offset, _), target in zip(theirs, ours, strict=True):
                read([target], offset)
            return
        rest = list(ours)
        for offset, length in theirs:
            part, rest = split(rest, length)
            read(part, offset)

    def _copy_run(self, part: list[memoryview], offset: int) -> None:
        for target in part:
            size = len(target)
            if self._mapped is None or offset + size > len(self._mapped):
                raise TransferError("store: shorter than announced")
            _memcpy(address_of(target), self._start + offset, size)
            offset += size

    def _read_run(self, part: list[memoryview], offset: int) -> None:
        while part:
            try:
                count = os.preadv(self._fd, part[:512], offset)
            except OSError as error:
                raise InstanceLost(f"store: {error.strerror}") from error
            if count == 0:
                raise TransferError("store: shorter than announced")
            offset += count
            _, part = split(part, count)

    def close(self) -> None:
        """See ``transport.Source``."""
        self._mapped = None
        os.close(self._fd)


def _mapping(fd: int) -> memoryview | None:
    """All of a store; None if it is not sealed and could shrink. Private, as only of a mapping that
    might be written to can the address be had; nobody writes to it."""
    try:
        if not fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
            return None
        return memoryview(mmap.mmap(fd, 0, flags=mmap.MAP_PRIVATE))
    except (OSError, ValueError):
        return None


class ShmCarrier:
    """Passes each store's descriptor with the first manifest that names it."""

    poll_s = math.inf

    def __init__(self, channel: Channel, shm: "Shm") -> None:
        self._channel = channel
        self._shm = shm
        self._stream = StreamCarrier(channel)
        self._passed: set[int] = set()

    def attach(self, memory: BlockMemory) -> bytes:
        """See ``transport.Carrier``."""
        fd = self._shm.file(memory)
        if fd < 0:
            return IN_STREAM
        if fd not in self._passed:
            self._passed.add(fd)
            self._channel.enclose(fd)
        return IN_FILE

    def push(self, memory: BlockMemory, extents: Sequence[Extent]) -> None:
        """See ``transport.Carrier``."""
        if self._shm.file(memory) < 0:
            self._stream.push(memory, extents)

    def poll(self) -> None:
        """See ``transport.Carrier``."""

    def close(self) -> None:
        """The descriptors are of all connections."""


class Shm:
    """Shared memory of two processes of one machine."""

    name = "shm"

    def __init__(self) -> None:
        self._machine = machine_id()
        self._lock = threading.Lock()
        self._files: list[tuple[BlockMemory, int]] = []
        """Every store ever given and a read-only descriptor of it, or -1."""

    def can_reach(self, ref: TransferRef) -> bool:
        """See ``transport.Transport``."""
        return bool(ref.endpoint.path) and ref.endpoint.machine == self._machine != ""

    def dial(self, ref: TransferRef) -> tuple[socket.socket, Address | None]:
        """See ``transport.Transport``."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        return sock, f"\0{ref.endpoint.path}"

    def source(self, channel: Channel, manifest: Manifest, ref: TransferRef) -> Source:  # noqa: ARG002
        """See ``transport.Transport``."""
        if manifest.attach == IN_STREAM:
            return StreamSource(channel)
        if manifest.attach != IN_FILE or len(channel.descriptors) != 1:
            raise TransferError("manifest: no store came with it")
        return FileSource(channel.descriptors.pop())

    def carrier(self, channel: Channel) -> ShmCarrier:
        """See ``transport.Transport``."""
        if not channel.is_unix:
            raise TransferError("shared memory is for a Unix socket")
        return ShmCarrier(channel, self)

    def file(self, memory: BlockMemory) -> int:
        """A read-only descriptor of a store; -1 if it has none to share."""
        with self._lock:
            for known, fd in self._files:
                if known is memory:
                    return fd
            try:
                fd = readonly(memory.fd) if memory.fd >= 0 else -1
            except OSError as error:
                log.warning("a store cannot be shared, its blocks are sent: %s", error.strerror)
                fd = -1
            self._files.append((memory, fd))
            return fd

    def close(self) -> None:
        """See ``transport.Transport``."""
        with self._lock:
            while self._files:
                _, fd = self._files.pop()
                if fd >= 0:
                    os.close(fd)
