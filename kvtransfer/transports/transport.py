"""The seam of transports: extents of a giver's store into a taker's memory.

The conversation (``giver``, ``taking``) is the same for every way and runs over a ``Channel``: it
says what moves and under which lease. A way only moves bytes. Layouts, leases, digests and time are
not known here.
"""

import ctypes
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from socket import socket
from typing import NamedTuple, Protocol

from kvtransfer.channel import Address, Channel
from kvtransfer.manifest import Abort, Manifest
from triptych.core.errors import InstanceLost, TransferError, from_code
from triptych.core.handoff import TransferRef
from triptych.core.ports import BlockMemory


class WayBroken(TransferError):
    """A way does not carry, although the peer may live: another way may do. Raised by sources.
    Its cause is what to raise if there is no other way."""


class Parted(Exception):
    """The giver has ended the transfer, and said why: no way is to blame. Raised by sources."""

    def __init__(self, message: Abort) -> None:
        super().__init__(message.detail)
        self.error = from_code(message.code, message.detail)


@contextmanager
def breaking(channel: Channel) -> Iterator[None]:
    """What goes wrong inside is the way's fault, not the peer's, as long as the peer is there."""
    try:
        yield
    except (TransferError, InstanceLost) as error:
        if channel.is_cut:
            raise
        raise WayBroken(error.detail) from error


def hear_parting(channel: Channel) -> None:
    """Raise Parted if the giver has said that it leaves. What it said before is void."""
    while channel.has_news():
        message, _ = channel.receive()
        if isinstance(message, Abort):
            raise Parted(message)


class Extent(NamedTuple):
    """A run of bytes of a store."""

    offset: int
    length: int


class Source(Protocol):
    """The taker's side of one store of one giver; lives as long as the connection at most."""

    @property
    def view(self) -> memoryview | None:
        """The whole store, where the taker sees it and it cannot vanish; not to be written to."""
        ...

    def read(self, theirs: Sequence[Extent], ours: Sequence[memoryview]) -> None:
        """Fill ``ours`` with ``theirs``, in order; both have the same total length, but may be cut
        differently. ``theirs`` lie within the announced size of the store. Blocks, as long as the
        connection's deadlines allow. Nobody writes into ``ours`` once it has returned or raised.
        Raises WayBroken if another way may do, TransferError or InstanceLost if none will; may have
        written some of them by then. Or Parted."""
        ...

    def close(self) -> None:
        """Let go of what was opened."""
        ...


class Carrier(Protocol):
    """The giver's side of one connection."""

    poll_s: float
    """How often ``poll`` is to be called while the giver waits; infinity: never."""

    def attach(self, memory: BlockMemory) -> bytes:
        """Make ``memory`` readable for the taker; what its ``source`` must know for that, at most
        64 KiB. Called before each Manifest, so again for a store that is attached already."""
        ...

    def push(self, memory: BlockMemory, extents: Sequence[Extent]) -> None:
        """Send ``extents``, right behind the Chunk that announced them, which the channel may still
        hold. One-sided ways do nothing.
        Returns when the bytes may change again as far as this way is concerned."""
        ...

    def poll(self) -> None:
        """Let the way work on what it has in hand."""
        ...

    def close(self) -> None:
        """Let go of what was opened."""
        ...


class Transport(Protocol):
    """One way between instances: both its sides. Made once an instance."""

    name: str

    def can_reach(self, ref: TransferRef) -> bool:
        """Whether the promise's instance offers this way to us."""
        ...

    def dial(self, ref: TransferRef) -> tuple[socket, Address | None]:
        """A fresh socket and the address to connect it to; None if it is connected."""
        ...

    def source(self, channel: Channel, manifest: Manifest, ref: TransferRef) -> Source:
        """Open the store that a manifest announced. Raises WayBroken, TransferError or
        InstanceLost."""
        ...

    def carrier(self, channel: Channel) -> Carrier:
        """Serve a connection whose taker asked for this way. Raises TransferError if it cannot."""
        ...

    def close(self) -> None:
        """Let go of what all connections share; idempotent. They are closed by then."""
        ...


class OneSided:
    """The carrier of a way whose taker reads by itself."""

    poll_s = math.inf

    def attach(self, memory: BlockMemory) -> bytes:  # noqa: ARG002
        """See ``Carrier``."""
        return b""

    def push(self, memory: BlockMemory, extents: Sequence[Extent]) -> None:
        """See ``Carrier``."""

    def poll(self) -> None:
        """See ``Carrier``."""

    def close(self) -> None:
        """See ``Carrier``."""


def slices(view: memoryview, extents: Sequence[Extent]) -> list[memoryview]:
    """The bytes of ``extents``."""
    return [view[offset : offset + length] for offset, length in extents]


def split(parts: Sequence[memoryview], num_bytes: int) -> tuple[list[memoryview], list[memoryview]]:
    """The first ``num_bytes`` of ``parts`` and what is behind them."""
    head: list[memoryview] = []
    for index, part in enumerate(parts):
        if num_bytes < len(part):
            rest = [part[num_bytes:], *parts[index + 1 :]]
            return ([*head, part[:num_bytes]] if num_bytes else head), rest
        head.append(part)
        num_bytes -= len(part)
    return head, []


def address_of(view: memoryview) -> int:
    """Where the bytes of a writable view begin."""
    return ctypes.addressof(ctypes.c_char.from_buffer(view)) if view.nbytes else 0


def machine_id() -> str:
    """Boot id of the kernel we run on; empty if it does not tell."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else ""
