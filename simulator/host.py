"""Instances of the world: the server's own, on machines that are modelled.

Implements ``cluster.host.Host`` and ``cluster.machine.Machine``. Knows hardware; decides nothing.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence

from cluster.host import Hosted, InstanceSpec
from cluster.instance import HostedInstance
from cluster.instance_build import build_instance
from cluster.tiers_build import Movers
from encoder_service.pictures import Decoders
from kvtransfer.fetching import Fetching
from kvtransfer.promises import Promises
from scheduler.costs import Costs
from simulator import texts
from simulator.costs.card import Card
from simulator.executors import Computing, EmptyMemory, SimulatedLanguage, SimulatedVision
from simulator.hardware import Hardware, embedding_layout, kv_layout
from simulator.hop import Far
from simulator.interference import Interference
from simulator.links import Fabric, SimulatedFetching, SimulatedPromises
from simulator.recorder import Recorder, place_of
from simulator.threads import Threads
from simulator.world import World
from triptych.core import topology
from triptych.core.clock import Clock
from triptych.core.config import Config, LimitsConfig
from triptych.core.config_sparse import NONE
from triptych.core.errors import ConfigError
from triptych.core.ids import InstanceId, JobId
from triptych.core.lifecycle import Role, Stage
from triptych.core.ports import Executors, Instance
from triptych.inputs.model_card import ModelCard

_NO_PIXELS = object()
"""What a modelled decoder makes of a picture."""


class _Pace:
    """Implements ``simulator.executors.Pace`` for one thread of an instance."""

    def __init__(
        self, instance: InstanceId, host: "SimulatedHost", nice: int = 0, *, encodes: bool = False
    ) -> None:
        self.world = host.world
        self._host = host
        self._decoding: set[JobId] = set()
        self._place = place_of(instance)
        self._recorder = host.recorder
        self._interference = host.interference
        self.cores = None if host.threads is None else host.threads.under(instance, nice)
        self._instance = instance
        self._encodes = encodes

    def begin(self, what: str, share: float = 1.0) -> float:
        """See ``Pace``."""
        return self._interference.begin(self._place, what, share)

    def wait_s(self, num_jobs: int) -> float:
        """See ``Pace``."""
        if self._host.threads is None:
            return 0.0
        costs = self._host.threads.costs
        return costs.step_wait_s + costs.step_token_wait_s * num_jobs

    def told(self) -> None:
        """See ``Pace``."""
        if self._host.threads is not None:
            self._host.threads.stepped(self._instance)

    def turned(self, num_jobs: int, num_prompts: int, then: Callable[[], None]) -> None:
        """See ``Pace``."""
        threads = self._host.threads
        if threads is None:
            then()
        elif self._encodes:
            threads.encoded(self._instance, then)
        else:
            threads.turned(self._instance, (num_jobs, num_prompts), then)

    def decodes(self, jobs: Iterable[JobId]) -> None:
        """See ``Pace``."""
        if self._host.on_decoding is not None:
            present = set(jobs)
            for job in sorted(present - self._decoding):
                self._host.on_decoding(job)
            self._decoding = present

    def worked(self, what: str, begin_s: float, num_jobs: int, num_tokens: int) -> None:
        """See ``Pace``."""
        self._interference.end(self._place, what)
        times = begin_s, self.world.time()
        self._recorder.worked(self._place, what, times, (num_jobs, num_tokens))

    def drew(self, job: JobId, index: int, times_s: Sequence[float]) -> None:
        """See ``Pace``."""
        self._recorder.drew(job.partition("/")[0], index, times_s)


class _SimulatedDecoders:
    """Pictures take their time on one of ``workers`` cores. Implements ``Decoders``."""

    def __init__(self, host: "SimulatedHost", workers: int) -> None:
        self._seconds = host.hardware.decode_s
        self._pixels = host.hardware.picture_pixels
        self._threads = host.threads
        self._free = asyncio.Semaphore(workers)

    def warm(self) -> None:
        """Nothing to start."""

    async def decode(self, data: bytes, encoding: str, width: int, height: int) -> object:  # noqa: ARG002
        """See ``Decoders``: no pixels."""
        async with self._free:
            if self._threads is not None:
                await self._threads.decoded(width, height)
            else:
                await asyncio.sleep(self._seconds * (self._pixels or width * height) / 1e6)
        return _NO_PIXELS

    async def close(self) -> None:
        """Nothing to end."""


class SimulatedMachine:
    """One machine under one instance. Implements ``Machine``."""

    def __init__(self, host: "SimulatedHost") -> None:
        self.clock: Clock = host.world
        self._host = host

    def card(self, config: Config) -> ModelCard:
        """See ``Machine``."""
        if config.cache.host_bytes:
            raise ConfigError("cache.host_bytes: tiers are not simulated")
        if config.cache.kv_dtype != "auto":
            raise ConfigError(
                "cache.kv_dtype: codes are not simulated; costs may be of such a model"
            )
        if config.model.decode_gap_s:
            raise ConfigError("model.decode_gap_s: simulated instances do not contend for cores")
        if config.model.vision_share < 1.0:
            raise ConfigError("model.vision_share: not simulated; costs may be of such an instance")
        if config.engine.split != "whole" and self._host.hardware.has_shared_cores:
            raise ConfigError("engine.split: only a GPU is divided")
        if config.sparse.selector != NONE:
            raise ConfigError("sparse.selector: sparse prefill is not simulated")
        return self._host.card

    def costs(self, spec: InstanceSpec) -> Costs:
        """See ``Machine``."""
        return self._host.hardware.card(topology.name(frozenset(spec.role))).costs

    async def executors(self, spec: InstanceSpec, card: ModelCard) -> Executors:
        """See ``Machine``. A cold start takes its time, and so does another role, which must have
        as many GPUs."""
        host, cache, place = self._host, spec.config.cache, place_of(spec.id)
        own, model = host.settle(spec), card.fingerprint
        before = host.left.pop(place, None)
        ready_s = host.hardware.ready_s(frozenset(spec.role), before)
        await asyncio.sleep(ready_s if host.is_started else 0.0)
        pace = _Pace(spec.id, host)
        costs: Costs = own.costs
        if host.threads is not None:
            costs = host.threads.around(costs)
        embeddings = language = vision = None
        if Stage.ENCODE in spec.role or Stage.PREFILL in spec.role:
            layout = embedding_layout(own, model, cache.embedding_block_size)
            embeddings = EmptyMemory(layout, cache.embedding_blocks)
        if Stage.PREFILL in spec.role or Stage.DECODE in spec.role:
            layout = kv_layout(own, model, cache.block_size, host.hardware.kv_layers)
            kv = EmptyMemory(layout, cache.kv_blocks)
            readable = embeddings if Stage.PREFILL in spec.role else None
            groups = host.hardware.layer_groups
            language = SimulatedLanguage(kv, readable, costs, pace, groups)
            host.interference.listen(place, language.interrupt)
        if Stage.ENCODE in spec.role and embeddings is not None:
            around = host.hardware.overheads
            is_alone = around is not None and around.encodes_alone
            nice = around.pictures_nice if around is not None and language is not None else 0
            pace = _Pace(spec.id, host, nice, encodes=True)
            vision = SimulatedVision(embeddings, costs, pace, encodes_alone=is_alone)
        return Computing(language, vision, embeddings, {})

    async def tiers(self, spec: InstanceSpec, executors: Executors) -> Movers:  # noqa: ARG002
        """See ``Machine``: there are none."""
        return Movers()

    def wires(self, spec: InstanceSpec) -> tuple[Promises, Fetching]:
        """See ``Machine``."""
        host, config = self._host, spec.config.transfer
        promises = SimulatedPromises(spec.id, config, host.world, host.world)
        host.fabric.promises[spec.id] = promises
        return promises, SimulatedFetching(spec.id, config, host.world, host.fabric)

    def forget(self, instance: InstanceId) -> None:
        """See ``Machine``."""
        self._host.fabric.promises.pop(instance, None)

    def decoders(self, limits: LimitsConfig) -> Decoders:
        """See ``Machine``."""
        return _SimulatedDecoders(self._host, limits.decode_workers)


class _HostedThere:
    """One instance of the world. Implements ``Hosted``."""

    pid = 0

    def __init__(self, instance: HostedInstance, spec: InstanceSpec, host: "SimulatedHost") -> None:
        self._here = instance
        self._spec = spec
        self._host = host
        self.instance: Instance = instance
        if host.threads is not None:
            self.instance = Far(instance, host.threads.costs.hop_s, spec.id, host.threads)
        elif host.hardware.hop_s:
            self.instance = Far(instance, host.hardware.hop_s, spec.id)

    async def wait(self) -> str:
        """See ``Hosted``."""
        return await self._here.wait()

    async def stop(self, drain_s: float) -> None:
        """See ``Hosted``."""
        if drain_s > 0:
            await self._here.drain(drain_s)
        await self._here.close()
        self._host.left[place_of(self._spec.id)] = frozenset(self._spec.role)

    async def kill(self) -> None:
        """See ``Hosted``."""
        await self._here.close()


class SimulatedHost:
    """Builds the instances of one world. Implements ``Host``."""

    def __init__(self, world: World, hardware: Hardware, recorder: Recorder) -> None:
        self.world = world
        self.hardware = hardware
        self.recorder = recorder
        self.card = texts.card(hardware.model)
        share = 0.0 if hardware.has_shared_cores else hardware.contention
        self.interference = Interference(hardware.colocated, share)
        self.left: dict[str, Role] = {}
        """What the last instance of a place was, where it ended in peace."""
        self._num_gpus: dict[str, int] = {}
        self.threads: Threads | None = None
        if hardware.overheads is not None:
            speeds = hardware.overheads.speeds if hardware.has_shared_cores else ()
            self.threads = Threads(world, hardware.overheads, speeds)
        self.fabric = Fabric(hardware.near, hardware.far, hardware.per_node)
        self.fabric.on_carried = recorder.carried
        if self.threads is not None:
            self.fabric.moved = self.threads.moved
        self.on_decoding: Callable[[JobId], None] | None = None
        """Hears of every sequence that begins to decode. A router hears of it by a token, as soon
        as a step is over; but a run of steps tells of its tokens when it ends."""
        self.is_started = False
        """Whether the cluster served once: what starts from then on starts cold."""

    async def start(self, spec: InstanceSpec) -> Hosted:
        """See ``Host``."""
        instance = await build_instance(spec, SimulatedMachine(self))
        return _HostedThere(instance, spec, self)

    def settle(self, spec: InstanceSpec) -> Card:
        """Give an instance the GPUs of its place, and say what it has of them."""
        place, role = place_of(spec.id), topology.name(frozenset(spec.role))
        card = self.hardware.card(role)
        number = card.sizes.num_devices
        if self._num_gpus.setdefault(place, number) != number:
            raise ConfigError(f"{place}: as {role} it needs {number} GPUs, it has others")
        group = self.interference.neighbours.get(place)
        self.fabric.enter(spec.id, number, () if group is None else group.places)
        return card

    async def close(self) -> None:
        """See ``Host``."""
