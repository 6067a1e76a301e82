"""What an instance stands on: time, computation, memory and wires. A protocol, and the real one.

Everything that is built on it (services, engines, caches, leases) is the same on a machine that is
only modelled. Knows no stage and no policy.
"""

import asyncio
import contextlib
from collections.abc import MutableMapping
from pathlib import Path
from typing import Protocol

import msgspec

from cluster.host import InstanceSpec
from cluster.tiers_build import Movers, build_tiers
from encoder_service.pictures import Decoders
from kvtransfer.build import build_outbox, build_receiver, build_ways, check_way
from kvtransfer.fetching import Fetching
from kvtransfer.promises import Promises
from kvtransfer.transports.inproc import Neighbour
from scheduler.costs import Costs
from scheduler.registry import costs_of
from triptych.core.clock import Clock, MonotonicClock
from triptych.core.config import Config, LimitsConfig
from triptych.core.errors import ConfigError, TriptychError
from triptych.core.ids import InstanceId
from triptych.core.ports import Executors
from triptych.inputs.decode import DecoderPool
from triptych.inputs.model_card import ModelCard, load_card


class Machine(Protocol):
    """One machine under one instance."""

    clock: Clock

    def card(self, config: Config) -> ModelCard:
        """The model that is to be served. Raises ConfigError if it, or anything else that is
        configured, cannot be had here; nothing was loaded then."""
        ...

    def costs(self, spec: InstanceSpec) -> Costs | None:
        """What the instance's steps are known to take; None if nobody measured. Raises
        ConfigError."""
        ...

    async def executors(self, spec: InstanceSpec, card: ModelCard) -> Executors:
        """What the instance computes with. Raises ConfigError; a cancelled call leaves nothing."""
        ...

    async def tiers(self, spec: InstanceSpec, executors: Executors) -> Movers:
        """Tiers below the stores. Raises ConfigError."""
        ...

    def wires(self, spec: InstanceSpec) -> tuple[Promises, Fetching]:
        """Both sides of the instance's transfers; ``Fetching`` is to be closed first."""
        ...

    def forget(self, instance: InstanceId) -> None:
        """The instance is closing: nobody here finds its promises any more."""
        ...

    def decoders(self, limits: LimitsConfig) -> Decoders:
        """What makes pixels of pictures."""
        ...


class ThisMachine:
    """The machine that we run on. ``neighbours`` are the outboxes of this process, to which that of
    the instance is added while it lives."""

    def __init__(self, neighbours: MutableMapping[InstanceId, Neighbour] | None = None) -> None:
        self.clock: Clock = MonotonicClock()
        self._neighbours = {} if neighbours is None else neighbours

    def card(self, config: Config) -> ModelCard:
        """See ``Machine``."""
        check_way(config.transfer)
        card = load_card(config.model.path)
        known_by = config.sparse.model(card.fingerprint)
        return msgspec.structs.replace(card, fingerprint=known_by)

    def costs(self, spec: InstanceSpec) -> Costs | None:
        """See ``Machine``."""
        path = spec.config.engine.costs
        if not path:
            return None
        try:
            return costs_of(Path(path).read_bytes())
        except OSError as error:
            raise ConfigError(f"engine.costs: {path}: {error.strerror}") from error

    async def executors(self, spec: InstanceSpec, card: ModelCard) -> Executors:
        """See ``Machine``. Loading weights takes its time, in a thread; if we are cancelled, their
        memory is given back first."""
        from triptych.executor.build import build  # torch: machines that are modelled lack it

        path, role = spec.config.model.path, frozenset(spec.role)
        work = asyncio.to_thread(build, path, spec.config, role, card.fingerprint)
        loading = asyncio.create_task(work)
        try:
            return await asyncio.shield(loading)
        except asyncio.CancelledError:
            with contextlib.suppress(TriptychError):
                (await loading).close()
            raise

    async def tiers(self, spec: InstanceSpec, executors: Executors) -> Movers:
        """See ``Machine``."""
        return await build_tiers(spec, executors, self.clock)

    def wires(self, spec: InstanceSpec) -> tuple[Promises, Fetching]:
        """See ``Machine``."""
        config = spec.config.transfer
        ways = build_ways(spec.id, config, self._neighbours)
        soon = asyncio.get_running_loop().call_soon_threadsafe
        outbox = build_outbox(spec.id, config, spec.secret, self.clock, soon, ways)
        self._neighbours[spec.id] = outbox
        receiver = build_receiver(spec.id, config, spec.secret, self.clock, ways)
        return outbox, receiver

    def forget(self, instance: InstanceId) -> None:
        """See ``Machine``."""
        self._neighbours.pop(instance, None)

    def decoders(self, limits: LimitsConfig) -> Decoders:
        """See ``Machine``."""
        return DecoderPool(limits)
