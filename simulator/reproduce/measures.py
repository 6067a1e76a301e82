"""Measures by name: one number of a target's experiments, to be held against a band.

None knows a target: a file says which systems, cases and figures are compared.
"""

from collections.abc import Callable
from itertools import pairwise
from statistics import fmean

from bench import prefix_trace
from bench.figures import row_latency
from bench.study import Goodput
from simulator.reproduce import layouts, planning
from simulator.reproduce.lab import Lab
from simulator.reproduce.statistics import STATISTICS
from simulator.reproduce.target import Check
from triptych.core import topology

Measure = Callable[[Lab, Check], float]


def value(lab: Lab, check: Check) -> float:
    """``figure`` of the system ``of``."""
    return _least(lab, check, check.of)


def ratio(lab: Lab, check: Check) -> float:
    """``figure`` of ``of`` over that of ``to``."""
    return _least(lab, check, check.of) / _least(lab, check, check.to)


def goodput(lab: Lab, check: Check) -> float:
    """The greatest goodput of ``of``."""
    return max(each.crossing.rate for each in _goodputs(lab, check, check.of))


def goodput_per_gpu(lab: Lab, check: Check) -> float:
    """The greatest goodput per GPU of ``of``."""
    return max(map(_per_gpu, _goodputs(lab, check, check.of)))


def goodput_ratio(lab: Lab, check: Check) -> float:
    """The greatest goodput per GPU of ``of`` over the greatest of ``to``."""
    best = max(map(_per_gpu, _goodputs(lab, check, check.to)))
    return goodput_per_gpu(lab, check) / best if best else float("inf")


def queue_error(lab: Lab, check: Check) -> float:
    """Greatest relative error, over cases and rates, of the mean TTFT of one instance that works
    on one prompt of fixed length ``D`` at a time against M/D/1: ``D + R D^2 / (2 (1 - R D))``
    (DistServe, OSDI 2024, section 3.1)."""
    errors = []
    for rate, service_s, _, ttft_s in _queues(lab, check):
        expected_s = service_s + rate * service_s**2 / (2.0 * (1.0 - rate * service_s))
        errors.append(abs(ttft_s / expected_s - 1.0))
    return max(errors)


def recursion_error(lab: Lab, check: Check) -> float:
    """The same against the waits that follow from the very arrivals of the run (Lindley, 1952):
    no chance in it."""
    errors = []
    for _, service_s, arrivals, ttft_s in _queues(lab, check):
        wait_s, waits = 0.0, [0.0]
        for before, after in pairwise(arrivals):
            wait_s = max(0.0, wait_s + service_s - (after - before))
            waits.append(wait_s)
        errors.append(abs(ttft_s / (service_s + fmean(waits)) - 1.0))
    return max(errors)


def planner_share(lab: Lab, check: Check) -> float:
    """Simulated goodput of the best layout that a planner (``figure``) proposes over that of the
    best of all systems ``of``."""
    case = lab.target.case_of(check)
    proposed = set(planning.proposed(lab, case, check.figure))
    systems = lab.target.systems(case, check.of)
    mine = [system for system in systems if system.topology in proposed]
    found = max(lab.goodputs(case, mine), key=_rate)
    best = layouts.best(lab, case, systems, found.crossing.rate)
    return found.crossing.rate / best


def grid_gain(lab: Lab, check: Check) -> float:
    """The greatest gain, over the target's grid of SLOs, of the best of ``of`` over the best of
    ``to``, where that serves any rate."""
    cells = [layouts.of_cell(cell, check) for cell in layouts.grid(lab, check)]
    return max(best / fixed for best, fixed in cells if fixed > 0.0)


def grid_winners(lab: Lab, check: Check) -> float:
    """Families of layouts (roles without counts) that are the best at some SLO of the grid."""
    return float(len(layouts.winners(layouts.grid(lab, check))))


def instances_at_end(lab: Lab, check: Check) -> float:
    """Instances of the role ``figure`` when the last request is over, the least over all runs."""
    case = lab.target.case_of(check)
    counts = []
    for system in lab.target.systems(case, check.of):
        before = {topology.name(role): count for role, count in topology.parse(system.topology)}
        for run in lab.runs(case, system):
            moves = [one.detail.split(" -> ") for one in run.changes if one.what == "role"]
            gained = sum(after == check.figure for _, after in moves)
            lost = sum(was == check.figure for was, _ in moves)
            counts.append(before.get(check.figure, 0) + gained - lost)
    return float(min(counts))


def hit_ratio(lab: Lab, check: Check) -> float:  # noqa: ARG001
    """Percent of a trace's prefix blocks that are found in the server's own cache, without
    bounds."""
    prompts = prefix_trace.read(lab.trace())
    num_distinct = len({block for prompt in prompts for block in prompt})
    found = prefix_trace.replay(prompts, prefix_trace.Task("lru", num_distinct))
    return 100.0 * found.ratio


MEASURES: dict[str, Measure] = {
    each.__name__: each
    for each in (
        value, ratio, goodput, goodput_per_gpu, goodput_ratio, queue_error, recursion_error,
        planner_share, grid_gain, grid_winners, instances_at_end, hit_ratio,
    )
}  # fmt: skip
"""By the name that target files use."""

WITH_FIGURE = (value.__name__, ratio.__name__)
"""Measures whose ``figure`` is one of ``STATISTICS``."""


def _least(lab: Lab, check: Check, pattern: str) -> float:
    """Of several systems the least figure: what is compared so is better if it is small."""
    case = lab.target.case_of(check)
    statistic = STATISTICS[check.figure]
    return min(statistic(lab.runs(case, system)) for system in lab.target.systems(case, pattern))


def _goodputs(lab: Lab, check: Check, pattern: str) -> list[Goodput]:
    case = lab.target.case_of(check)
    return lab.goodputs(case, lab.target.systems(case, pattern))


def _rate(one: Goodput) -> float:
    return one.crossing.rate


def _per_gpu(one: Goodput) -> float:
    return one.crossing.rate / one.num_gpus


def _queues(lab: Lab, check: Check) -> list[tuple[float, float, list[float], float]]:
    """Rate, service time, arrivals and mean TTFT of each case and rate, its seeds joined."""
    found = []
    for case in lab.target.cases_of(check):
        for system in lab.target.systems(case, check.of):
            costs = lab.card(case, system).costs
            for run in lab.runs(case, system):
                lengths = {row.prompt_tokens for row in run.rows}
                assert len(lengths) == 1, "one service time"
                service_s = costs.language_s([(0, lengths.pop())], 0, 0)
                latencies = [each for row in run.rows if (each := row_latency(row)) is not None]
                arrivals = [row.arrival_s for row in run.rows]
                ttft_s = fmean(each.ttft_s for each in latencies)
                found.append((run.rate, service_s, arrivals, ttft_s))
    return found
