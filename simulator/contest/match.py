"""One cell of a contest: a layout is chosen with one seed, its goodput is found with others.

Layouts race: a layout is searched only if it keeps the level at the goodput of the best before it.
Refuses a run that took other GPUs than the cell has. Writes nothing.
"""

import time

import msgspec

from bench.figures import counted, row_latency, slo_of
from bench.goodput import Bisection, Point
from bench.run import Row, Run
from bench.study import Goodput
from simulator.contest.contest import Cell
from simulator.contest.layouts import Layout, layouts
from simulator.goodput import Sweep
from simulator.run import Progress, num_gpus
from simulator.scenario import Scenario, System
from triptych.core.errors import ConfigError

GROWTH = 1.25
"""Of the rate, while a search has not seen both sides of the goodput; it begins near."""
PLAN_TOLERANCE = 2.0
"""Of the choice of a layout, as a multiple of the result's."""


class Tried(msgspec.Struct, frozen=True):
    """A layout that was simulated to choose one."""

    topology: str
    chunk_tokens: int
    predicted: float
    rate: float
    """Its goodput, or the rate at which it lost against the best before it."""
    has_lost: bool


class Result(msgspec.Struct, frozen=True):
    """What came of a cell."""

    key: str
    load: str
    workload: str
    system: str
    num_gpus: int
    topology: str
    settings: tuple[str, ...]
    goodput: Goodput
    points: tuple[tuple[float, tuple[float, ...]], ...]
    """Attainment of every seed at every rate, by rate."""
    missed: dict[str, float]
    """Of all requests at the least rate that was too much, the shares that were late with the first
    token (``ttft``), with the others (``tpot``), or not answered at all."""
    tried: tuple[Tried, ...]
    num_requests: int
    """Simulated for all this."""
    cpu_s: float

    @property
    def per_gpu(self) -> float:
        """Goodput per GPU: the mean over the seeds' curves."""
        return self.goodput.interval.mean / self.num_gpus


def run(cell: Cell, key: str, on_progress: Progress | None = None) -> tuple[Result, Run]:
    """The result, and one run at the greatest rate that was good (or the least, if none was).
    Raises ConfigError."""
    begin_s, runs = time.process_time(), _Runs(cell)
    layout, start, tried = _chosen(cell, runs, on_progress)
    contest, runs.kept = cell.contest, []
    scenario = scenario_of(cell, layout.system, contest.seeds, cell.duration_s)
    sweep = Sweep(scenario, layout.system, runs, on_progress)
    search = Bisection(start, contest.attainment, contest.tolerance, growth=GROWTH)
    search.run(sweep.measure)
    found = sweep.settle(search)
    rates = sorted({run.rate for run in runs.kept})
    by_rate = {
        rate: tuple(
            point.attainment
            for curve in sweep.curves.values()
            for point in curve
            if point.rate == rate
        )
        for rate in rates
    }
    shown = found.good or rates[0]
    bad = [run for run in runs.kept if run.rate == (found.bad or rates[-1])]
    result = Result(
        key=key,
        load=cell.load.name,
        workload=cell.load.workload,
        system=cell.entry.name,
        num_gpus=cell.num_gpus,
        topology=layout.system.topology,
        settings=layout.system.set,
        goodput=sweep.goodput(found),
        points=tuple(by_rate.items()),
        missed=missed([row for run in bad for row in counted(run)]),
        tried=tried,
        num_requests=runs.num_requests,
        cpu_s=time.process_time() - begin_s,
    )
    return result, next(run for run in runs.kept if run.rate == shown)


def scenario_of(
    cell: Cell, system: System, seeds: tuple[int, ...], duration_s: float, rate: float = 1.0
) -> Scenario:
    """The cell as a scenario. Raises ConfigError if the system takes other GPUs than the cell has,
    or runs without its prefix cache."""
    contest = cell.contest
    scenario = Scenario(
        name=contest.name,
        costs=contest.costs,
        workload=cell.load.workload,
        rates=(rate,),
        duration_s=duration_s,
        systems=(system,),
        warmup_s=contest.warmup_s,
        drain_s=contest.drain_s,
        seeds=seeds,
        machines=contest.machines,
        sample_s=0.0,
        attainment=contest.attainment,
    )
    plan = scenario.plan(system, rate, seeds[0])
    taken = num_gpus(plan.config, plan.hardware)
    if taken != cell.num_gpus:
        raise ConfigError(f"{cell.title}: {system.topology} takes {taken} GPUs")
    if not plan.config.cache.prefix:
        raise ConfigError(f"{cell.title}: cache.prefix is on for all")
    return scenario


def missed(rows: list[Row]) -> dict[str, float]:
    """Shares of requests by what they missed; a request that was late twice counts twice."""
    count = {"ttft": 0, "tpot": 0, "unanswered": 0}
    for row in rows:
        found, slo = row_latency(row), slo_of(row)
        if found is None:
            count["unanswered"] += 1
            continue
        count["ttft"] += slo.ttft_s is not None and found.ttft_s > slo.ttft_s
        count["tpot"] += slo.tpot_s is not None and found.tpot_s > slo.tpot_s
    return {what: number / max(1, len(rows)) for what, number in count.items()}


class _Runs:
    """What was run for a cell; whole runs are kept."""

    def __init__(self, cell: Cell) -> None:
        self._cell = cell
        self.num_requests = 0
        self.kept: list[Run] = []

    def __call__(self, run: Run) -> None:
        if run.num_gpus != self._cell.num_gpus:
            raise ConfigError(f"{self._cell.title}: a run took {run.num_gpus} GPUs")
        self.num_requests += len(run.rows)
        if not run.invalid:
            self.kept.append(run)


def _chosen(
    cell: Cell, runs: _Runs, on_progress: Progress | None
) -> tuple[Layout, float, tuple[Tried, ...]]:
    """The best layout, the rate at which to begin its search, and all that were tried."""
    contest, found = cell.contest, layouts(cell)
    if len(found) == 1 and found[0].predicted:
        return found[0], found[0].predicted, ()
    best, rate, tried = found[0], 0.0, list[Tried]()
    for layout in found:
        start = rate or layout.predicted or float(cell.num_gpus)
        seeds, duration_s = (contest.plan_seed,), contest.plan_duration_s
        scenario = scenario_of(cell, layout.system, seeds, duration_s)
        sweep = Sweep(scenario, layout.system, runs, on_progress)
        first = Point(start, sweep.measure(start))
        has_lost = rate > 0.0 and first.attainment < contest.attainment
        if not has_lost:
            tolerance = PLAN_TOLERANCE * contest.tolerance
            search = Bisection(start, contest.attainment, tolerance, growth=GROWTH)
            search.tell(first.rate, first.attainment)
            own = search.run(sweep.measure).rate
            if own > rate:
                best, rate = layout, own
        tried.append(_tried(layout, start if has_lost else own, has_lost))
        runs.kept = []
    return best, rate or start, tuple(tried)


def _tried(layout: Layout, rate: float, has_lost: bool) -> Tried:
    settings = dict(setting.split("=", 1) for setting in layout.system.set)
    chunk = int(settings.get("engine.chunk_tokens", 0))
    return Tried(layout.system.topology, chunk, layout.predicted, rate, has_lost)
