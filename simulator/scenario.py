"""A scenario file: what serves, on what, under which workload, at which rates, and what goes wrong.

TOML in, ``simulator.run.Plan``s out. Knows names and defaults; runs nothing.
"""

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from bench.sources.registry import workload
from bench.workload import Arrival, Workload
from cluster.roles import ROLES, places_of
from simulator.costs import registry
from simulator.costs.card import Card
from simulator.costs.devices import LINKS, LinkRate
from simulator.costs.overheads import Overheads
from simulator.costs.sizes import USED
from simulator.happenings import Happening
from simulator.hardware import Hardware
from simulator.interference import Colocated, present
from simulator.profile.slices import growth
from simulator.run import Plan
from triptych.core import topology
from triptych.core.config import Config, load
from triptych.core.errors import ConfigError
from triptych.core.lifecycle import Role, Stage
from triptych.core.request import Slo

Positive = Annotated[float, Meta(gt=0)]

SETTINGS = (
    "cluster.secret=simulated",
    "cluster.heartbeat_s=5",
    "cluster.timeout_s=30",
    "cluster.verify_idle=false",
    "cluster.directory_flush_s=0.25",
    "engine.stream_interval=1000000",
    "engine.max_sequences=256",
    "engine.max_waiting=100000",
    "engine.token_budget=2048",
    "engine.chunk_tokens=2048",
    "engine.image_budget_tokens=8192",
    "cache.block_size=64",
    "cache.embedding_block_size=64",
    "limits.max_requests=1000000",
    "limits.max_requests_per_tenant=1000000",
    "limits.max_output_tokens=32768",
    "limits.decode_workers=8",
    "limits.default_deadline_s=600",
    "limits.max_deadline_s=3600",
    "transfer.lease_s=60",
)
"""What a simulated server has instead of the defaults: a GPU's sizes, and no work that only a real
one needs (heartbeats, checks of invariants, a message for each token). Caches have what the memory
of their GPUs leaves, unless the scenario says otherwise."""

EMBEDDING_BYTES = 4 << 30
"""Of an instance's embedding cache, as the field's default is."""


class System(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One of the things compared."""

    name: str
    topology: str
    set: tuple[str, ...] = ()
    """``section.key=value`` on top of the scenario's."""
    tp: dict[str, int] = {}
    """Tensor-parallel degree by role."""
    costs: str = ""
    """Instead of the scenario's."""
    roles: str = "static"
    """Policy of roles over time (``router.roles``), which is carried out."""
    groups: dict[str, str] = {}
    """Modality group (``text``, ``multimodal``) by place at the start, for policies of groups."""


class Machines(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """See ``simulator.hardware.Hardware``."""

    near: str = "nvlink-h200"
    far: str = "rdma-400g"
    per_node: int = 8
    link_share: Positive = 0.9
    """Of the line rate that transfers reach."""
    decode_s: float = 0.004
    picture_pixels: Annotated[int, Meta(ge=0)] = 0
    start_s: float = 30.0
    load_s: float = 10.0
    switch_s: float = 0.7
    contention: Annotated[float, Meta(ge=0)] = 1.0
    kv_layers: Annotated[int, Meta(ge=1)] = 16
    layer_groups: Annotated[int, Meta(ge=1)] = 4
    hop_s: float = 0.0005
    cores: Annotated[int, Meta(ge=0)] | None = None
    """Of the one machine on which everything runs, clients included; 0: every instance has a device
    and each process a core of its own. As profiled (``costs = "file:PATH"``), or else 0."""
    colocated: tuple[Colocated, ...] = ()
    """Applied to the systems that have all of the places."""


class Bounds(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What every request is promised, instead of its class."""

    ttft_s: Positive | None = None
    tpot_s: Positive | None = None


class Scenario(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A scenario file."""

    name: str
    costs: str
    """``simulator.costs.registry``: ``h200:qwen2.5-vl-7b``."""
    workload: str
    """``bench.sources.registry``: ``synthetic:image_heavy``."""
    rates: tuple[Annotated[float, Meta(ge=0)], ...]
    """Requests per second; 0: the workload's own, which a closed loop has to have."""
    duration_s: Positive
    systems: tuple[System, ...]
    warmup_s: float = 0.0
    drain_s: float = 600.0
    seeds: tuple[int, ...] = (1,)
    set: tuple[str, ...] = ()
    machines: Machines = Machines()
    happenings: tuple[Happening, ...] = ()
    sample_s: Annotated[float, Meta(ge=0)] = 1.0
    """Queues are recorded this often, seconds; 0: never."""
    slo: Bounds | None = None
    """Instead of the classes that requests name."""
    attainment: float = 0.9
    """Share of requests within their SLO at which a rate counts as served."""

    @property
    def source(self) -> Workload:
        """The workload. Raises ConfigError."""
        return workload(self.workload)

    def arrivals(self, rate: float, seed: int) -> Iterator[Arrival]:
        """What is offered to every system. Raises ConfigError."""
        return self.source.arrivals(rate or None, self.duration_s, seed)

    def plan(self, system: System, rate: float, seed: int) -> Plan:
        """One run. Raises ConfigError."""
        hardware = self.hardware(system)
        slo = None if self.slo is None else Slo("scenario", self.slo.ttft_s, self.slo.tpot_s)
        return Plan(
            system=system.name,
            workload=self.source.name,
            config=self.config(system, hardware),
            hardware=hardware,
            rate=rate,
            duration_s=self.duration_s,
            seed=seed,
            warmup_s=self.warmup_s,
            drain_s=self.drain_s,
            happenings=self.happenings_of(system),
            groups=system.groups,
            sample_s=self.sample_s,
            slo=slo,
        )

    def plans(self) -> Iterator[tuple[System, Plan]]:
        """All runs: of each rate and seed all systems in turn."""
        for rate in self.rates:
            for seed in self.seeds:
                for system in self.systems:
                    yield system, self.plan(system, rate, seed)

    def happenings_of(self, system: System) -> tuple[Happening, ...]:
        """What happens to a system. Raises ConfigError."""
        happening = [
            one for one in self.happenings if not one.systems or system.name in one.systems
        ]
        for one in happening:
            one.check(dict(places_of(system.topology)))
        return tuple(happening)

    def hardware(self, system: System) -> Hardware:
        """What a system runs on. Raises ConfigError."""
        base, machines = system.costs or self.costs, self.machines
        names = [topology.name(role) for role, _ in topology.parse(system.topology)]
        if unknown := set(system.tp) - set(names):
            raise ConfigError(f"{system.name}: tp: no role {', '.join(sorted(unknown))}")
        cards = {"": registry.costs(base)}
        overheads = _overheads(cards[""], machines)
        cards |= {role: registry.costs(f"{base},tp={tp}") for role, tp in system.tp.items()}
        return Hardware(
            model=base.partition(",")[0].partition(":")[2],
            cards=cards,
            near=_link(machines.near, machines.link_share),
            far=_link(machines.far, machines.link_share),
            per_node=machines.per_node,
            decode_s=machines.decode_s,
            picture_pixels=machines.picture_pixels,
            start_s=machines.start_s,
            load_s=machines.load_s,
            switch_s=machines.switch_s,
            contention=machines.contention,
            kv_layers=machines.kv_layers,
            layer_groups=machines.layer_groups,
            hop_s=machines.hop_s,
            overheads=overheads,
            has_shared_cores=overheads is not None and bool(overheads.speeds),
            colocated=present(machines.colocated, dict(places_of(system.topology))),
        )

    def config(self, system: System, hardware: Hardware) -> Config:
        """The server's configuration. Raises ConfigError."""
        given = (*SETTINGS, *self.set, *_own(system))
        config = load(None, given, environment={})
        keys = {setting.partition("=")[0] for setting in given}
        at_start = dict(topology.parse(system.topology))
        roles = {}
        for role in ROLES.values():
            try:
                own = tuple(_sizes_of(role, hardware, config, keys))
            except ConfigError:
                if role in at_start:
                    raise
                continue  # no instance can become one
            roles[topology.name(role)] = own
        roles = {name: (*own, *config.cluster.roles.get(name, ())) for name, own in roles.items()}
        cluster = msgspec.structs.replace(config.cluster, roles=roles)
        return msgspec.structs.replace(config, cluster=cluster)


def _own(system: System) -> tuple[str, ...]:
    """Settings of a system."""
    return (f"cluster.topology={system.topology}", f"router.roles={system.roles}", *system.set)


def read(path: Path) -> Scenario:
    """The scenario in a file. Raises ConfigError that names the field."""
    try:
        tree: dict[str, Any] = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"scenario {path}: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"scenario {path}: {error}") from error
    return made(tree, str(path))


def made(tree: dict[str, Any], name: str) -> Scenario:
    """The scenario that a tree of TOML says. Raises ConfigError that names the field."""
    try:
        scenario = msgspec.convert(tree, Scenario)
    except msgspec.ValidationError as error:
        raise ConfigError(f"scenario {name}: {error}") from error
    for system in scenario.systems:
        scenario.plan(system, scenario.rates[0], scenario.seeds[0])
    workload(scenario.workload)
    return scenario


def kv_blocks(card: Card, role: Role, block_size: int, share: float = 1.0) -> int:
    """Blocks of KV that fit beside the weights and the embedding cache, with a share of memory."""
    has_vision = Stage.ENCODE in role
    spare = card.sizes.spare_bytes(has_vision, True, share * USED)
    if Stage.PREFILL in role or has_vision:
        spare = max(0, spare - EMBEDDING_BYTES)
    return spare // (block_size * card.sizes.kv_token_bytes)


def _sizes_of(role: Role, hardware: Hardware, config: Config, given: set[str]) -> Iterator[str]:
    """Sizes of the caches of a role, as far as nobody has said them."""
    card, cache = hardware.card(topology.name(role)), config.cache
    if "cache.kv_blocks" not in given and role & {Stage.PREFILL, Stage.DECODE}:
        places = dict(places_of(config.cluster.topology))
        shares = [
            group.memory_of(place)
            for group in hardware.colocated
            for place in group.places
            if places[place] == role
        ]
        count = kv_blocks(card, role, cache.block_size, min(shares, default=1.0))
        if count < 1:
            raise ConfigError(f"{topology.name(role)}: the model leaves no memory for KV")
        yield f"cache.kv_blocks={count}"
    if "cache.embedding_blocks" not in given and role & {Stage.ENCODE, Stage.PREFILL}:
        each = cache.embedding_block_size * card.sizes.visual_token_bytes
        yield f"cache.embedding_blocks={EMBEDDING_BYTES // each}"


def _overheads(card: Card, machines: Machines) -> Overheads | None:
    """What a profile says of the machine, with as many cores as the scenario says: more than were
    measured gain as much each as the last one. Raises ConfigError."""
    found, cores = card.overheads, machines.cores
    if cores is None or (found is None and cores == 0):
        return found
    if found is None:
        raise ConfigError("machines.cores: what shares them is not known: costs are not a profile")
    speeds = found.speeds[:cores]
    step = speeds[-1] - speeds[-2] if len(speeds) > 1 else 1.0
    last = speeds[-1] if speeds else 0.0
    more = range(1, cores - len(speeds) + 1)
    speeds = (*speeds, *(last + step * n for n in more))
    slice_s = found.slice_s
    if slice_s and speeds and found.speeds:
        slice_s *= growth(len(speeds)) / growth(len(found.speeds))
    return msgspec.structs.replace(found, speeds=speeds, slice_s=slice_s)


def _link(name: str, share: float) -> LinkRate:
    if name not in LINKS:
        raise ConfigError(f"machines: link {name!r} is none of {', '.join(LINKS)}")
    link = LINKS[name]
    return msgspec.structs.replace(link, bytes_per_s=link.bytes_per_s * share)
