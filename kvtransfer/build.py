"""Wires the outbox and the receiver of one instance with the transports that exist."""

from collections.abc import Callable, Mapping
from typing import Any

from kvtransfer.inproc import Inproc, Neighbour
from kvtransfer.receiver import Receiver
from kvtransfer.sender import Outbox
from kvtransfer.shm import Shm
from kvtransfer.tcp import Tcp
from triptych.core.clock import Clock
from triptych.core.config import TransferConfig
from triptych.core.ids import InstanceId


def build_outbox(
    instance: InstanceId,
    config: TransferConfig,
    secret: bytes,
    clock: Clock,
    call_soon: Callable[..., Any],
) -> Outbox:
    """The outbox of an instance; ``call_soon`` is its event loop's ``call_soon_threadsafe``."""
    return Outbox(instance, config, secret, clock, call_soon)


def build_receiver(
    instance: InstanceId,
    config: TransferConfig,
    secret: bytes,
    clock: Clock,
    neighbours: Mapping[InstanceId, Neighbour] | None = None,
) -> Receiver:
    """The receiver of an instance. ``neighbours`` are the outboxes of the same process by
    instance, a mapping that may change while the receiver lives."""
    transports = (
        Inproc({} if neighbours is None else neighbours),
        Shm(),
        Tcp(config.timeout_s),
    )
    return Receiver(instance, config, secret, clock, transports)
