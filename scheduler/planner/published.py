"""Planners as others published them, over the same closed form: TriInfer's split in proportion to
stage times, and EPDServe's enumeration.

Both know single roles on one kind of instance; they are what ours is compared with.
"""

import math

from scheduler.planner.candidate import Candidate, judged, ranked
from scheduler.planner.closed_form import Works
from scheduler.planner.problem import D, E, Kind, Layout, P, Pool, Problem
from scheduler.planner.search import ROLES, counts_of
from scheduler.planner.station import Station
from triptych.core.errors import ConfigError
from triptych.core.lifecycle import Stage

_SINGLE = (ROLES["E"], ROLES["P"], ROLES["D"])


def epdserve(problem: Problem, keep: int = 10) -> list[Candidate]:
    """Every ``(e, p, d)`` that sums to the number of instances, best first.

    EPDServe's simulation-based allocator (ICML 2025, section 3.2.3 and its code) enumerates them
    and takes the best rate at 90 % attainment; here the closed form stands for its simulator, and
    the first kind for its fixed parallelism. Raises ConfigError below three instances.
    """
    kind, number = _instances(problem)
    works = Works(problem)
    chunk = max(problem.chunks)
    layouts = (_layout(kind, counts) for counts in counts_of((1, 1, 1), number))
    return ranked(judged(works, layout, chunk) for layout in layouts)[:keep]


def proportional(problem: Problem, keep: int = 10) -> list[Candidate]:
    """N instances in proportion to the seconds that a request spends in each stage, as ``E+P+D``,
    ``EP+D`` and ``ED+P``; best first.

    TriInfer's hybrid profiler (MLSys 2026; arXiv 2505.12658): load of each stage over what one
    instance does at the largest batch within the SLO, decode's from the memory that weights leave;
    then the three families that follow are replayed and the best is kept. The closed form stands
    for the replay. Raises ConfigError below three instances.
    """
    kind, number = _instances(problem)
    works = Works(problem)
    chunk = max(problem.chunks)
    e, p, d = split(stage_seconds(works, kind, chunk), number)
    families: tuple[Layout, ...] = (
        _layout(kind, (e, p, d)),
        (Pool(ROLES["EP"], e + p, kind), Pool(ROLES["D"], d, kind)),
        (Pool(ROLES["ED"], e + d, kind), Pool(ROLES["P"], p, kind)),
    )
    return ranked(judged(works, layout, chunk) for layout in families)[:keep]


def stage_seconds(works: Works, kind: Kind, chunk_tokens: int) -> dict[Stage, float]:
    """Seconds of one instance that a request takes in each stage, at the batch that its SLO and
    memory allow."""
    work = works.of(kind, chunk_tokens)
    seconds = {}
    for stage, role in zip((E, P, D), _SINGLE, strict=True):
        room = works.problem.footprint.kv_tokens(role, kind)
        station = Station(Pool(role, 1, kind), work.demand, work.steps, room)
        seconds[stage] = 1.0 / station.capacity()[stage]
    return seconds


def split(seconds: dict[Stage, float], number: int) -> tuple[int, int, int]:
    """``number`` instances to three stages in proportion to ``seconds``, at least one each, by
    largest remainder (the source does not say how it rounds)."""
    total = sum(seconds.values())
    exact = [(number - 3) * seconds[stage] / total for stage in (E, P, D)]
    whole = [1 + math.floor(one) for one in exact]
    order = sorted(range(3), key=lambda index: (math.floor(exact[index]) - exact[index], index))
    for index in order[: number - sum(whole)]:
        whole[index] += 1
    return whole[0], whole[1], whole[2]


def _instances(problem: Problem) -> tuple[Kind, int]:
    problem.check()
    kind = problem.kinds[0]
    number = problem.num_gpus // kind.num_gpus
    if number < len(_SINGLE):
        raise ConfigError(f"num_gpus: {problem.num_gpus} are fewer than three instances")
    if any(problem.footprint.kv_tokens(role, kind) <= 0.0 for role in _SINGLE):
        raise ConfigError(f"kinds: the model does not fit into {kind.name!r}")
    return kind, number


def _layout(kind: Kind, counts: tuple[int, ...]) -> Layout:
    return tuple(Pool(role, count, kind) for role, count in zip(_SINGLE, counts, strict=True))
