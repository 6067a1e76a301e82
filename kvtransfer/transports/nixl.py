"""Through NIXL: the taker reads out of the giver's registered memory by itself (RDMA, CUDA IPC,
shared memory or TCP, as UCX finds).

One agent of an instance is read from and lives as long as the instance; another one reads, and may
have to end before (``nixl_source``). Each store is registered once with either. UCX's own settings
(``UCX_TLS``, ``UCX_NET_DEVICES``) are the operator's.
"""

import secrets
import threading
from collections.abc import Sequence
from socket import socket
from typing import Protocol, runtime_checkable

import msgspec

from kvtransfer.channel import Address, Channel
from kvtransfer.manifest import Manifest
from kvtransfer.transports.nixl_agent import NixlAgent, Region, is_installed
from kvtransfer.transports.nixl_source import Attached, NixlSource, Readers
from kvtransfer.transports.tcp import Tcp
from kvtransfer.transports.transport import Extent, address_of
from triptych.core.clock import Clock
from triptych.core.config import TransferConfig
from triptych.core.errors import InstanceLost, TransferError
from triptych.core.handoff import TransferRef
from triptych.core.ports import BlockMemory

POLL_S = 0.0005
"""How often a giver helps along; matters only to UCX over TCP."""


@runtime_checkable
class OnDevice(Protocol):
    """A store whose blocks lie on a GPU, in the order of its ``view``."""

    device_address: int
    """0 if it lies in host memory after all."""
    device_index: int


class NixlCarrier:
    """The giver's side: registered memory, and help for transports that need it."""

    poll_s = POLL_S

    def __init__(self, agent: NixlAgent) -> None:
        self._agent = agent
        self._attached: dict[int, tuple[BlockMemory, Region, bytes]] = {}
        """Stores by identity, and what the taker was told of them."""

    def attach(self, memory: BlockMemory) -> bytes:
        """See ``transport.Carrier``."""
        if id(memory) not in self._attached:
            region = _region(memory)
            self._agent.hold(region, memory.view)
            attached = msgspec.msgpack.encode(Attached(self._agent.metadata(), *region))
            self._attached[id(memory)] = memory, region, attached
        return self._attached[id(memory)][2]

    def push(self, memory: BlockMemory, extents: Sequence[Extent]) -> None:
        """See ``transport.Carrier``."""

    def poll(self) -> None:
        """See ``transport.Carrier``."""
        self._agent.progress()

    def close(self) -> None:
        """See ``transport.Carrier``. A store stays registered for the next connection."""
        while self._attached:
            self._agent.let_go(self._attached.popitem()[1][1])


class Nixl:
    """Instances that both have NIXL; the conversation runs over TCP."""

    name = "nixl"

    def __init__(self, instance: str, config: TransferConfig, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._tcp = Tcp(config.timeout_s)
        self._name = f"{instance}-{secrets.token_hex(8)}"
        self._readers = Readers(f"{self._name}-taker", config.nixl_backend)
        self._lock = threading.Lock()
        self._giver: NixlAgent | None = None
        self._is_closed = False

    @staticmethod
    def is_usable() -> bool:
        """Whether this machine has NIXL."""
        return is_installed()

    def can_reach(self, ref: TransferRef) -> bool:
        """See ``transport.Transport``."""
        return self.name in ref.endpoint.ways and self._tcp.can_reach(ref)

    def dial(self, ref: TransferRef) -> tuple[socket, Address | None]:
        """See ``transport.Transport``."""
        return self._tcp.dial(ref)

    def source(self, channel: Channel, manifest: Manifest, ref: TransferRef) -> NixlSource:  # noqa: ARG002
        """See ``transport.Transport``."""
        try:
            attached = msgspec.msgpack.decode(manifest.attach, type=Attached)
        except msgspec.MsgspecError as error:
            raise TransferError("manifest: not what nixl attaches") from error
        return NixlSource(attached, channel, self._readers, self._config.timeout_s, self._clock)

    def carrier(self, channel: Channel) -> NixlCarrier:  # noqa: ARG002
        """See ``transport.Transport``."""
        return NixlCarrier(self._serving())

    def close(self) -> None:
        """See ``transport.Transport``. What takers could read of us is registered no more."""
        with self._lock:
            self._is_closed = True
            giver, self._giver = self._giver, None
        if giver is not None:
            giver.close()
        self._readers.close()

    def _serving(self) -> NixlAgent:
        with self._lock:
            if self._is_closed:
                raise InstanceLost("the instance stops")
            if self._giver is None:
                self._giver = NixlAgent(self._name, self._config.nixl_backend)
            return self._giver


def _region(memory: BlockMemory) -> Region:
    if isinstance(memory, OnDevice) and memory.device_address:
        return Region(memory.device_address, memory.view.nbytes, "VRAM", memory.device_index)
    return Region(address_of(memory.view), memory.view.nbytes)
