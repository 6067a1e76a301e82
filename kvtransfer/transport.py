"""The three distances between two instances behind one interface, and which one to use.

A transport dials an outbox and reads the chunks that it announces into the taker's own blocks.
The conversation (``sender``, ``receiver``) is the same for all of them.
"""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from socket import socket
from typing import Protocol

from kvtransfer.channel import Address, Channel
from kvtransfer.manifest import Chunk, Manifest
from triptych.core.handoff import TransferRef
from triptych.core.ports import BlockMemory


class Source(Protocol):
    """Where the bytes of one store of the peer come from; lives as long as the connection."""

    def read(self, chunk: Chunk, targets: Sequence[memoryview]) -> None:
        """Fill ``targets`` (together as long as the chunk) with its blocks in order.
        Raises TransferError or InstanceLost; may have written some of them by then."""
        ...

    def close(self) -> None:
        """Let go of what was opened."""
        ...


class Transport(Protocol):
    """One way to reach an outbox."""

    name: str

    def can_reach(self, ref: TransferRef) -> bool:
        """Whether the promise's instance offers this way to us."""
        ...

    def dial(self, ref: TransferRef) -> tuple[socket, Address | None]:
        """A fresh socket and the address to connect it to; None if it is connected."""
        ...

    def source(self, channel: Channel, manifest: Manifest, ref: TransferRef) -> Source:
        """Open the store that a manifest announced. Raises TransferError."""
        ...


def choose(transports: Sequence[Transport], ref: TransferRef, name: str) -> list[Transport]:
    """The ways to fetch ``ref``, nearest first: ``transports`` in their order, those that reach.

    ``name`` is the configured transport: ``auto`` for any. The same process needs none.
    """
    return [
        transport
        for transport in transports
        if name in ("auto", transport.name) or transport.name == "inproc"
        if transport.can_reach(ref)
    ]


def machine_id() -> str:
    """Boot id of the kernel we run on; empty if it does not tell."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else ""


def slices(memory: BlockMemory, blocks: Sequence[int]) -> list[memoryview]:
    """The bytes of ``blocks`` in order; neighbours in memory come as one slice."""
    size = memory.layout.block_bytes
    return [memory.view[first * size : (first + count) * size] for first, count in runs(blocks)]


def runs(blocks: Sequence[int]) -> list[tuple[int, int]]:
    """``(first, count)`` of every ascending run: ``(4, 5, 6, 1, 2) -> [(4, 3), (1, 2)]``."""
    groups = groupby(enumerate(blocks), key=lambda pair: pair[1] - pair[0])
    found = []
    for _, group in groups:
        members = list(group)
        found.append((members[0][1], len(members)))
    return found
