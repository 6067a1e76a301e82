"""Wires the outbox and the receiver of one instance with the transports that exist."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kvtransfer.receiver import Receiver
from kvtransfer.sender import Outbox
from kvtransfer.transports.inproc import Inproc, Neighbour
from kvtransfer.transports.nccl import Nccl
from kvtransfer.transports.nixl import Nixl
from kvtransfer.transports.shm import Shm
from kvtransfer.transports.tcp import Tcp
from kvtransfer.transports.transport import Transport
from triptych.core.clock import Clock, MonotonicClock
from triptych.core.config import TransferConfig
from triptych.core.errors import ConfigError
from triptych.core.ids import InstanceId

Maker = Callable[[InstanceId, TransferConfig], Transport | None]
"""Makes a way for an instance; None where this machine lacks what the way needs."""


def _nixl(instance: InstanceId, config: TransferConfig) -> Nixl | None:
    return Nixl(instance, config, MonotonicClock()) if Nixl.is_usable() else None


def _nccl(_: InstanceId, config: TransferConfig) -> Nccl | None:
    return Nccl(config) if Nccl.is_usable(config) else None


WAYS: dict[str, Maker] = {"nixl": _nixl, "nccl": _nccl}
"""Ways beside those of every instance, by the name that ``transfer.transport`` may have."""


def build_ways(
    instance: InstanceId,
    config: TransferConfig,
    neighbours: Mapping[InstanceId, Neighbour] | None = None,
) -> tuple[Transport, ...]:
    """The ways of an instance, nearest first; its outbox and its receiver share them.
    ``neighbours`` are the outboxes of the same process by instance, which may change."""
    made = [make(instance, config) for make in WAYS.values()]
    return (
        Inproc({} if neighbours is None else neighbours),
        Shm(),
        *(way for way in made if way is not None),
        Tcp(config.timeout_s),
    )


def check_way(config: TransferConfig) -> None:
    """Raise ConfigError if the one way that is configured cannot work on this machine."""
    name = config.transport
    if name == "nixl" and not Nixl.is_usable():
        raise ConfigError("transfer.transport=nixl: it is not installed here (the extra nixl)")
    if name == "nccl" and not Nccl.is_usable(config):
        backend = f"torch has no backend {config.nccl_backend} here (transfer.nccl_backend)"
        raise ConfigError(f"transfer.transport=nccl: {backend}")


def build_outbox(
    instance: InstanceId,
    config: TransferConfig,
    secret: bytes,
    clock: Clock,
    call_soon: Callable[..., Any],
    ways: Sequence[Transport] | None = None,
) -> Outbox:
    """The outbox of an instance; ``call_soon`` is its event loop's ``call_soon_threadsafe``. It
    closes the ways, so close the receiver first."""
    given = build_ways(instance, config) if ways is None else ways
    return Outbox(instance, config, secret, clock, call_soon, given)


def build_receiver(
    instance: InstanceId,
    config: TransferConfig,
    secret: bytes,
    clock: Clock,
    ways: Sequence[Transport] | None = None,
) -> Receiver:
    """The receiver of an instance, by ``ways`` that somebody else closes."""
    given = build_ways(instance, config) if ways is None else ways
    return Receiver(instance, config, secret, clock, given)
