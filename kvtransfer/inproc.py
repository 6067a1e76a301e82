"""In one process: the taker copies out of its neighbour's memory directly.

The conversation runs over a socket pair, so leases, fences and cancellation are those of the
other transports; only the bytes take the short way.
"""

from collections.abc import Mapping, Sequence
from socket import socket
from typing import Protocol

from kvtransfer.channel import Address, Channel
from kvtransfer.manifest import Chunk, Manifest
from kvtransfer.tcp import StreamSource
from kvtransfer.transport import Source, slices
from triptych.core.errors import InstanceLost, TransferError
from triptych.core.handoff import TransferRef
from triptych.core.ids import InstanceId
from triptych.core.ports import BlockMemory


class Neighbour(Protocol):
    """An outbox of this process."""

    def connect(self) -> socket:
        """A connected socket to it. Raises InstanceLost."""
        ...

    def memory(self, number: int) -> BlockMemory:
        """One of its stores by the number in its manifests. Raises TransferError."""
        ...


class MemorySource:
    """A store of this process."""

    def __init__(self, memory: BlockMemory) -> None:
        self._memory = memory

    def read(self, chunk: Chunk, targets: Sequence[memoryview]) -> None:
        """See ``transport.Source``."""
        if len(chunk.blocks) != chunk.num_blocks or max(chunk.blocks) >= self._memory.num_blocks:
            raise TransferError("chunk: blocks that the store does not have")
        rest = list(targets)
        for source in slices(self._memory, chunk.blocks):
            at = 0
            while at < len(source):
                count = min(len(rest[0]), len(source) - at)
                rest[0][:count] = source[at : at + count]
                at += count
                rest = [rest[0][count:], *rest[1:]] if count < len(rest[0]) else rest[1:]

    def close(self) -> None:
        """Nothing was opened."""


class Inproc:
    """Outboxes of this process, by instance."""

    name = "inproc"

    def __init__(self, neighbours: Mapping[InstanceId, Neighbour]) -> None:
        self._neighbours = neighbours

    def can_reach(self, ref: TransferRef) -> bool:
        """See ``transport.Transport``."""
        return ref.instance in self._neighbours

    def dial(self, ref: TransferRef) -> tuple[socket, Address | None]:
        """See ``transport.Transport``."""
        return self._neighbour(ref).connect(), None

    def source(self, channel: Channel, manifest: Manifest, ref: TransferRef) -> Source:
        """See ``transport.Transport``."""
        if not manifest.is_mapped:
            return StreamSource(channel)
        return MemorySource(self._neighbour(ref).memory(manifest.memory))

    def _neighbour(self, ref: TransferRef) -> Neighbour:
        neighbour = self._neighbours.get(ref.instance)
        if neighbour is None:
            raise InstanceLost("the instance has left this process")
        return neighbour
