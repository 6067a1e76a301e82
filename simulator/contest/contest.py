"""A contest file: which systems, on which workloads, on how many GPUs, measured how exactly.

TOML in, cells out: one for each workload, number of GPUs and system. Refuses what would be unfair;
runs nothing.
"""

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from bench.sources.registry import workload
from scheduler.planner import PLANNERS
from simulator.scenario import Machines
from triptych.core.errors import ConfigError

Positive = Annotated[float, Meta(gt=0)]
Number = Annotated[int, Meta(ge=1)]


class Load(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One workload; numbers that are 0 are the contest's."""

    name: str
    workload: str
    """``bench.sources.registry``; ``{traces}`` in it is the folder that the caller names."""
    otherwise: str = ""
    """Workload where no such folder is named; empty: the load is left out then."""
    duration_s: Annotated[float, Meta(ge=0)] = 0.0
    short_s: Annotated[float, Meta(ge=0)] = 0.0
    """The same with ``--short``."""


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One system. Its layouts are proposed by a planner, by families, or given."""

    name: str
    planner: str = ""
    """``scheduler.planner.PLANNERS``; its best ``keep`` are simulated."""
    families: tuple[str, ...] = ()
    """``E+PD``: every number of each; the closed form's best ``keep`` are simulated."""
    topology: str = ""
    """This one, of ``plan_gpus`` GPUs, or else of as many as are asked for."""
    set: tuple[str, ...] = ()
    roles: str = "static"
    groups_by_load: bool = False
    """``modality`` placement gives pictures the share of the instances that is their share of the
    prompt tokens; without two kinds of requests it is ``least_loaded``."""
    does: str = ""
    """What of its source is configured."""
    lacks: str = ""
    """What of its source is not."""


class Contest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A contest file."""

    name: str
    costs: str
    num_gpus: tuple[Number, ...]
    loads: tuple[Load, ...]
    systems: tuple[Entry, ...]
    duration_s: Positive = 30.0
    warmup_s: Annotated[float, Meta(ge=0)] = 5.0
    drain_s: Positive = 120.0
    seeds: tuple[int, ...] = (1, 2, 3)
    tolerance: Positive = 0.08
    """Of a goodput, as a share."""
    keep: Number = 3
    """Layouts of each planner or family that are simulated."""
    chunks: tuple[Number, ...] = (1024, 2048, 8192)
    """Token budgets that layouts which prefill and decode on one instance may have."""
    plan_seed: int = 100
    """Layouts are chosen with it, and measured with ``seeds``."""
    plan_duration_s: Positive = 20.0
    plan_gpus: Annotated[int, Meta(ge=0)] = 0
    """Layouts are chosen for so many GPUs and multiplied; 0: chosen anew for each number."""
    attainment: float = 0.9
    set: tuple[str, ...] = ()
    machines: Machines = Machines()


class Cell(msgspec.Struct, frozen=True):
    """One number of the table."""

    contest: Contest
    load: Load
    entry: Entry
    num_gpus: int

    @property
    def duration_s(self) -> float:
        """Of arrivals."""
        return self.load.duration_s or self.contest.duration_s

    @property
    def title(self) -> str:
        """For a person."""
        return f"{self.load.name}, {self.num_gpus} GPUs, {self.entry.name}"


def read(path: Path) -> Contest:
    """The contest in a file. Raises ConfigError that names the field."""
    try:
        contest = msgspec.convert(tomllib.loads(path.read_text()), Contest)
    except OSError as error:
        raise ConfigError(f"contest {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(f"contest {path}: {error}") from error
    check(contest)
    return contest


def check(contest: Contest) -> None:
    """Raises ConfigError for a contest that would not be fair, or could not begin."""
    if contest.warmup_s >= min(contest.duration_s, contest.plan_duration_s):
        raise ConfigError("warmup_s: leaves nothing to measure")
    if contest.plan_seed in contest.seeds:
        raise ConfigError("plan_seed: a layout must not be chosen with a seed that measures it")
    for entry in contest.systems:
        if not (entry.planner or entry.families or entry.topology):
            raise ConfigError(f"{entry.name}: needs a planner, families or a topology")
        if entry.planner and entry.planner not in PLANNERS:
            raise ConfigError(f"{entry.name}: planner is none of {', '.join(PLANNERS)}")
        if [key for key in (*contest.set, *entry.set) if key.startswith("cache.prefix=")]:
            raise ConfigError(f"{entry.name}: cache.prefix is on for all")
    for names in ([one.name for one in contest.systems], [one.name for one in contest.loads]):
        if len(set(names)) < len(names):
            raise ConfigError("systems, loads: each name once")


def with_traces(contest: Contest, traces: Path | None) -> Contest:
    """Loads that need a folder of traces get it, or their replacement, or are left out. Raises
    ConfigError for a workload that cannot be read."""
    loads = []
    for load in contest.loads:
        name = load.workload
        if "{traces}" in name:
            name = load.otherwise if traces is None else name.replace("{traces}", str(traces))
        if name:
            workload(name)
            loads.append(msgspec.structs.replace(load, workload=name))
    return msgspec.structs.replace(contest, loads=tuple(loads))


def cells(contest: Contest) -> Iterator[Cell]:
    """Row by row."""
    for num_gpus in contest.num_gpus:
        for load in contest.loads:
            for entry in contest.systems:
                yield Cell(contest, load, entry, num_gpus)


def short(contest: Contest) -> Contest:
    """Less work: two seeds, runs of 20 s (but of loads that say how long they take), two layouts of
    each kind, chosen by runs of 10 s, a wider tolerance. Intervals over two seeds say little; the
    order of systems that are further apart than the tolerance stands."""
    loads = tuple(
        msgspec.structs.replace(load, duration_s=load.short_s or load.duration_s, short_s=0.0)
        for load in contest.loads
    )
    return msgspec.structs.replace(
        contest,
        loads=loads,
        seeds=contest.seeds[:2],
        duration_s=20.0,
        plan_duration_s=10.0,
        warmup_s=4.0,
        tolerance=0.1,
        keep=2,
    )


def lasting(contest: Contest, seconds: float) -> Contest:
    """The same with so many seconds of arrivals, a quarter of which at most is warm-up; layouts are
    not chosen by longer runs. Where queues have less time to grow all are flattered."""
    loads = tuple(
        msgspec.structs.replace(load, duration_s=seconds, short_s=0.0) for load in contest.loads
    )
    return msgspec.structs.replace(
        contest,
        loads=loads,
        duration_s=seconds,
        plan_duration_s=min(contest.plan_duration_s, seconds),
        warmup_s=min(contest.warmup_s, seconds / 4),
    )


def quick(contest: Contest) -> Contest:
    """The same in a small fraction of the time, to see that it works: one seed, short runs."""
    loads = tuple(msgspec.structs.replace(load, duration_s=0.0) for load in contest.loads)
    return msgspec.structs.replace(
        contest,
        loads=loads,
        seeds=contest.seeds[:1],
        duration_s=6.0,
        plan_duration_s=4.0,
        warmup_s=1.0,
        tolerance=0.2,
        keep=1,
    )
