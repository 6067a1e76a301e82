"""DistServe's placement search: the best kind of instance for each phase by itself, replicated.

OSDI 2024, section 4.1, Algorithm 1 (high node-affinity). It knows no encoder: pictures are encoded
where their prompt is prefilled, as EPDServe's comparison has it.
"""

import math
from collections.abc import Sequence
from itertools import product

import msgspec

from scheduler.planner.bisect import highest
from scheduler.planner.candidate import PRECISION, Candidate, judged
from scheduler.planner.closed_form import Works, token_gap
from scheduler.planner.problem import D, E, Kind, P, Pool, Problem
from scheduler.planner.queueing import Wait, within
from scheduler.planner.search import ROLES
from scheduler.planner.station import Station
from triptych.core.errors import ConfigError
from triptych.core.lifecycle import Role
from triptych.core.topology import name


class Phase(msgspec.Struct, frozen=True, eq=False):
    """One kind of instance in one phase."""

    role: Role
    kind: Kind
    goodput: float
    """Requests per second of one instance at which the phase's own SLO is met."""

    @property
    def per_gpu(self) -> float:
        """What the search maximises."""
        return self.goodput / self.kind.num_gpus

    def pool(self, count: int) -> Pool:
        """So many of these."""
        return Pool(self.role, count, self.kind)


def distserve(problem: Problem, keep: int = 1) -> list[Candidate]:
    """The placement, as a list of one (``keep`` is there to be called like the others).

    For each ``(tp, pp)`` among the kinds: the highest rate at which one prefill instance meets
    TTFT, and one decode instance TPOT, for the level's share of requests, by bisection. The kinds
    with most goodput per GPU are replicated to ``problem.rate``; without one, to the highest rate
    that ``num_gpus`` allow. Raises ConfigError if they do not suffice.
    """
    problem.check()
    works = Works(problem)
    chunk = max(problem.chunks)
    prefill = phases(works, ROLES["EP"], chunk)
    decode = phases(works, ROLES["D"], chunk)
    if problem.rate > 0.0:
        n, m = _for_rate(problem, prefill[0], decode[0])
    else:
        n, m = _for_gpus(problem.num_gpus, prefill, decode)
    return [judged(works, (n, m), chunk)][:keep]


def phases(works: Works, role: Role, chunk_tokens: int) -> list[Phase]:
    """The kinds in the phase of ``role`` (``EP`` or ``D``) that meet its SLO at some rate, most
    goodput per GPU first; of equals the smaller. Raises ConfigError if there is none."""
    able = [
        Phase(role, kind, _goodput(works, Pool(role, 1, kind), chunk_tokens))
        for kind in works.problem.kinds_of(role)
    ]
    able = [phase for phase in able if phase.goodput > 0.0]
    if not able:
        raise ConfigError(f"kinds: none meets the SLO of {name(role)}")
    return sorted(able, key=lambda one: (-one.per_gpu, one.kind.num_gpus))


def _goodput(works: Works, pool: Pool, chunk_tokens: int) -> float:
    """Of one instance in one phase."""
    problem, work = works.problem, works.of(pool.kind, chunk_tokens)
    kv_tokens = problem.footprint.kv_tokens(pool.role, pool.kind)
    station = Station(pool, work.demand, work.steps, kv_tokens)
    is_decode = D in pool.role
    station.take(*((0.0, 0.0, 1.0, 0.0) if is_decode else (1.0, 1.0, 0.0, 1.0)))
    able = station.capacity()
    most = able[D] if is_decode else 1.0 / (1.0 / able[E] + 1.0 / able[P])
    attained = _gaps_met if is_decode else _first_met
    step = PRECISION * most
    crossing = highest(
        lambda rate: attained(problem, station, rate) >= problem.level, step, most, step
    )
    return crossing.value if crossing.is_met else 0.0


def _first_met(problem: Problem, station: Station, rate: float) -> float:
    state = station.state(rate, problem.arrival_cv2)
    met = 0.0
    for index, one in enumerate(station.demand.services):
        seconds = station.encode_s(index, state) + station.prefill_s(index, state)
        slack_s = math.inf if one.slo.ttft_s is None else one.slo.ttft_s - seconds
        met += one.share * within(state.wait, Wait(), slack_s)
    return met


def _gaps_met(problem: Problem, station: Station, rate: float) -> float:
    state = station.state(rate, problem.arrival_cv2)
    met = 0.0
    for one in station.demand.services:
        moved_s = problem.kv_link.seconds(one.prompt * problem.footprint.kv_token_bytes)
        met += one.share * token_gap(one, state, moved_s)[0]
    return met


def _for_rate(problem: Problem, prefill: Phase, decode: Phase) -> tuple[Pool, Pool]:
    """The best kinds, as often as the wanted rate needs."""
    n, m = (one.pool(math.ceil(problem.rate / one.goodput)) for one in (prefill, decode))
    if n.num_gpus + m.num_gpus > problem.num_gpus:
        raise ConfigError(
            f"num_gpus: {problem.num_gpus} are fewer than the {n.num_gpus + m.num_gpus} that"
            f" {problem.rate} requests per second take"
        )
    return n, m


def _for_gpus(
    num_gpus: int, prefill: Sequence[Phase], decode: Sequence[Phase]
) -> tuple[Pool, Pool]:
    """The kinds and counts whose slower phase is quickest: with few GPUs the best kinds may not
    fit, or leave some idle. Of equals the fewest GPUs."""
    best: tuple[float, int] = (0.0, 0)
    found: tuple[Pool, Pool] | None = None
    for one, other in product(prefill, decode):
        for number in range(1, num_gpus // one.kind.num_gpus + 1):
            rest = (num_gpus - number * one.kind.num_gpus) // other.kind.num_gpus
            needed = math.ceil(number * one.goodput / other.goodput - 1e-9)
            pools = one.pool(number), other.pool(min(rest, max(1, needed)))
            rate = min(pools[0].count * one.goodput, pools[1].count * other.goodput)
            rank = rate, -sum(pool.num_gpus for pool in pools)
            if pools[1].count and (found is None or rank > best):
                best, found = rank, pools
    if found is None:
        raise ConfigError(f"num_gpus: {num_gpus} are fewer than one instance of each phase")
    return found
