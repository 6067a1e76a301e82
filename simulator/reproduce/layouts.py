"""Comparisons over many layouts: exhaustive search that stops early, and a grid of SLOs."""

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

import msgspec

from bench.figures import row_latency
from bench.goodput import Point
from bench.run import Run
from simulator.goodput import of_curve
from simulator.reproduce.lab import Lab
from simulator.reproduce.target import Check
from simulator.scenario import System
from triptych.core.metrics import Latency, is_attained
from triptych.core.request import Slo

SURELY = 1.02
"""By how much a winner is ahead of everything else."""


def best(lab: Lab, case: str, systems: Sequence[System], known: float) -> float:
    """The greatest goodput of all systems, ``known`` to be reached by one of them.

    A layout that does not hold the best rate so far is not searched: attainment falls with the
    rate, so its goodput is below. With every layout looked at, that is exhaustive search.
    """
    level = lab.scenario(case).attainment
    for system in systems:
        if lab.attainment(case, system, known * (1 + lab.target.tolerance)) >= level:
            known = max(known, lab.goodput(case, system, known).crossing.rate)
    return known


class Cell(msgspec.Struct, frozen=True):
    """One SLO of a grid."""

    slo: Slo
    goodputs: dict[str, float]
    """By system."""
    families: dict[str, str]
    """By system: its roles without counts."""


Judged = list[tuple[float, list[Latency | None]]]
"""Rate, and the latencies of its requests; None where there was no answer."""


def grid(lab: Lab, check: Check) -> Iterator[Cell]:
    """Goodput of every system at each SLO of the target's grid, from the same runs."""
    case, bounds = lab.target.case_of(check), lab.target.grid
    level, systems = lab.scenario(case).attainment, lab.target.systems(case, "*")
    judged = {system.name: _latencies(lab.runs(case, system)) for system in systems}
    families = {system.name: family(system.topology) for system in systems}
    for ttft_s in bounds.ttft_s:
        for tpot_s in bounds.tpot_s:
            slo = Slo("grid", ttft_s, tpot_s)
            goodputs = {name: of_curve(_curve(one, slo), level) for name, one in judged.items()}
            yield Cell(slo, goodputs, families)


def of_cell(cell: Cell, check: Check) -> tuple[float, float]:
    """The best goodput of ``of`` and of ``to``."""
    pairs = cell.goodputs.items()
    one = max(rate for name, rate in pairs if fnmatchcase(name, check.of))
    return one, max(rate for name, rate in pairs if fnmatchcase(name, check.to))


def winners(cells: Iterator[Cell]) -> set[str]:
    """Families that are surely ahead of all others in some cell."""
    found = set()
    for cell in cells:
        rates: dict[str, float] = {}
        for name, rate in cell.goodputs.items():
            kind = cell.families[name]
            rates[kind] = max(rate, rates.get(kind, 0.0))
        first, *rest = sorted(rates, key=lambda kind: -rates[kind])
        if not rest or rates[first] > SURELY * rates[rest[0]]:
            found.add(first)
    return found


def family(topology: str) -> str:
    """``E+P+D`` of ``E2,P1,D4``."""
    return "+".join(part.rstrip("0123456789") for part in topology.split(","))


def _latencies(runs: Sequence[Run]) -> Judged:
    return [(run.rate, [row_latency(row) for row in run.rows]) for run in runs]


def _curve(judged: Judged, slo: Slo) -> list[Point]:
    """Attainment by rate, seeds pooled."""
    counts: dict[float, tuple[int, int]] = {}
    for rate, latencies in judged:
        good, of = counts.get(rate, (0, 0))
        good += sum(each is not None and is_attained(each, slo) for each in latencies)
        counts[rate] = good, of + len(latencies)
    return [Point(rate, good / of) for rate, (good, of) in counts.items()]
