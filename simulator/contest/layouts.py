"""Layouts that a system of a contest may have: what its planner proposes, or every one of a family.

Each takes exactly the GPUs of the cell. Knows the closed form; simulates nothing.
"""

import msgspec

from scheduler.planner import PLANNERS
from scheduler.planner.candidate import Candidate, judged, ranked
from scheduler.planner.closed_form import Works
from scheduler.planner.demand import Shape
from scheduler.planner.problem import D, P, Pool, Problem
from scheduler.planner.search import ROLES, counts_of
from simulator.contest.contest import Cell, Entry
from simulator.planning import Wish, as_system, problem_of
from simulator.scenario import System
from triptych.core import topology
from triptych.core.errors import ConfigError


class Layout(msgspec.Struct, frozen=True):
    """One of the systems that a cell may choose."""

    system: System
    predicted: float
    """Goodput of the closed form, requests per second; 0: not asked."""


def layouts(cell: Cell) -> list[Layout]:
    """The layouts to be simulated, the most promising first. Raises ConfigError."""
    entry, contest = cell.entry, cell.contest
    number = contest.plan_gpus or cell.num_gpus
    wish = Wish(contest.costs, cell.load.workload, number, level=contest.attainment)
    problem = msgspec.structs.replace(problem_of(wish), chunks=contest.chunks)
    own = (*contest.set, *entry.set, *_groups(entry, problem.shapes))
    found: list[Candidate] = []
    if entry.planner:
        found += PLANNERS[entry.planner](problem, contest.keep)[: contest.keep]
    for family in entry.families:
        found += _family(problem, family)[: contest.keep]
    distinct = {(each.topology, each.chunk_tokens): each for each in found}
    made = [Layout(as_system(each, own), each.goodput) for each in ranked(distinct.values())]
    if entry.topology:
        made.append(Layout(System(entry.topology, entry.topology, own), 0.0))
    factor, rest = divmod(cell.num_gpus, number)
    if rest:
        raise ConfigError(f"plan_gpus: {cell.num_gpus} is no multiple of {number}")
    return [_named(each, entry, factor) for each in made]


def multiplied(text: str, factor: int) -> str:
    """The topology with ``factor`` times as many instances of each role."""
    return ",".join(
        f"{topology.name(role)}{count * factor}" for role, count in topology.parse(text)
    )


def _named(layout: Layout, entry: Entry, factor: int) -> Layout:
    system = msgspec.structs.replace(
        layout.system,
        name=entry.name,
        topology=multiplied(layout.system.topology, factor),
        roles=entry.roles,
    )
    return Layout(system, layout.predicted * factor)


def _family(problem: Problem, family: str) -> list[Candidate]:
    """Every number of each role, under every token budget that can matter; best first."""
    names = family.split("+")
    if unknown := set(names) - set(ROLES):
        raise ConfigError(f"families: {family}: no role {', '.join(sorted(unknown))}")
    roles, kind, works = [ROLES[name] for name in names], problem.kinds[0], Works(problem)
    chunks = problem.chunks if any(role >= {P, D} for role in roles) else (max(problem.chunks),)
    sizes = (kind.num_gpus,) * len(roles)
    made = (
        tuple(Pool(role, count, kind) for role, count in zip(roles, counts, strict=True))
        for counts in counts_of(sizes, problem.num_gpus)
    )
    return ranked(judged(works, layout, chunk) for layout in made for chunk in chunks)


def _groups(entry: Entry, shapes: tuple[Shape, ...]) -> tuple[str, ...]:
    """Share of the ``modality`` groups by the prompt tokens of each."""
    if not entry.groups_by_load:
        return ()
    pictured = sum(one.prompt for one in shapes if one.pictures)
    share = pictured / sum(one.prompt for one in shapes)
    if not 0.0 < share < 1.0:
        return ("router.placement=least_loaded",)
    return ("router.placement=modality", f"router.picture_share={share:.2f}")
