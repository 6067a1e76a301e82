"""In one process: the taker copies out of its neighbour's memory directly.

The conversation runs over a socket pair, so leases, fences and cancellation are those of the
other transports; only the bytes take the short way.
"""

from collections.abc import Mapping, Sequence
from socket import socket
from typing import Protocol

from kvtransfer.channel import Address, Channel
from kvtransfer.manifest import Manifest
from kvtransfer.transports.transport import Extent, OneSided, Source, slices, split
from triptych.core.errors import InstanceLost
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

    def __init__(self, view: memoryview) -> None:
        self.view = view.toreadonly()

    def read(self, theirs: Sequence[Extent], ours: Sequence[memoryview]) -> None:
        """See ``transport.Source``."""
        rest = list(ours)
        for source in slices(self.view, theirs):
            part, rest = split(rest, len(source))
            at = 0
            for target in part:
                target[:] = source[at : at + len(target)]
                at += len(target)

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

    def source(self, channel: Channel, manifest: Manifest, ref: TransferRef) -> Source:  # noqa: ARG002
        """See ``transport.Transport``."""
        return MemorySource(self._neighbour(ref).memory(manifest.store).view)

    def carrier(self, channel: Channel) -> OneSided:  # noqa: ARG002
        """See ``transport.Transport``."""
        return OneSided()

    def close(self) -> None:
        """Nothing was opened."""

    def _neighbour(self, ref: TransferRef) -> Neighbour:
        neighbour = self._neighbours.get(ref.instance)
        if neighbour is None:
            raise InstanceLost("the instance has left this process")
        return neighbour
