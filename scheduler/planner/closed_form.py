"""The closed form: what a layout makes of a demand at a rate, without simulating it.

Queues of encode and prefill by ``queueing``, batches of decode by ``decode``, shares of pools by
``flows``, then for every request of the sample the probability that it meets its SLO. What is
approximate, and when it is wrong, is in docs/planning.md.
"""

import math
from statistics import NormalDist

import msgspec

from scheduler.planner.decode import Steps
from scheduler.planner.demand import Demand, Service, demand
from scheduler.planner.flows import balanced, coupled
from scheduler.planner.problem import D, E, Kind, Layout, P, Problem, written
from scheduler.planner.queueing import Wait, departure_cv2, within
from scheduler.planner.station import State, Station
from triptych.core.errors import ConfigError
from triptych.core.lifecycle import Stage

_NORMAL = NormalDist()


class Work(msgspec.Struct, frozen=True, eq=False):
    """A sample of requests on one kind of instance under one token budget."""

    demand: Demand
    steps: Steps
    chunk_tokens: int


class Works:
    """The work of one problem by kind and budget, computed when first asked for."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self._known: dict[tuple[str, int], Work] = {}

    def of(self, kind: Kind, chunk_tokens: int) -> Work:
        """The work on ``kind``, prefilled in chunks of ``chunk_tokens``."""
        key = kind.name, chunk_tokens
        if key not in self._known:
            asked = self.problem
            wanted = demand(
                asked.shapes,
                kind.costs,
                chunk_tokens,
                rate=asked.rate,
                arrival_cv2=asked.arrival_cv2,
                slo_of=asked.slo_of,
            )
            self._known[key] = self.made(wanted, kind, chunk_tokens)
        return self._known[key]

    def made(self, wanted: Demand, kind: Kind, chunk_tokens: int) -> Work:
        """The work of a demand that is known already."""
        steps = Steps(kind.costs, wanted.context, wanted.chunk, self.problem.max_decodes)
        return Work(wanted, steps, chunk_tokens)


class Estimate(msgspec.Struct, frozen=True):
    """What the closed form expects of a layout at a rate."""

    rate: float
    attainment: float
    """Share of all requests that meet both bounds."""
    by_class: dict[str, float]
    """The same, by SLO class."""
    ttft: float
    """Share that meets the first bound."""
    tpot: float
    """Share that meets the second."""
    ttft_s: float
    """Mean; ``inf`` if overloaded."""
    tpot_s: float
    waits_s: dict[str, float]
    """Mean wait by stage: encode, prefill."""
    utilisation: dict[str, float]
    """By stage: of encode and prefill the share of time that servers are busy (with all that they
    do), of decode the share of the batch limit. The busiest pool's."""
    batch: float
    """Mean sequences of the busiest decode instance."""
    bottleneck: Stage
    """The stage that misses first, or is busiest."""


class Prediction:
    """One layout under one problem. Made once, asked at many rates; pure."""

    def __init__(self, problem: Problem, layout: Layout, works: list[Work]) -> None:
        missing = set(Stage) - {stage for pool in layout for stage in pool.role}
        if missing:
            names = ", ".join(sorted(stage.value for stage in missing))
            raise ConfigError(f"layout: {written(layout)!r} has no instance for {names}")
        self.layout = layout
        self._problem = problem
        self._stations = [
            Station(
                pool, work.demand, work.steps, problem.footprint.kv_tokens(pool.role, pool.kind)
            )
            for pool, work in zip(layout, works, strict=True)
        ]
        self._capacity = [each.capacity() for each in self._stations]
        shares = balanced(self._capacity)
        self._encode_to_prefill = coupled(shares[E], shares[P])
        self._prefill_to_decode = coupled(shares[P], shares[D])
        for index, station in enumerate(self._stations):
            local = self._encode_to_prefill.get((index, index), 0.0)
            station.take(shares[E][index], shares[P][index], shares[D][index], local)
        self._sample = [work.demand.services for work in works]

    @property
    def bound(self) -> float:
        """No rate above this can be served: each stage alone on all that serve it."""
        return min(sum(one.get(stage, 0.0) for one in self._capacity) for stage in Stage)

    @property
    def max_decodes(self) -> int:
        """The largest batch whose step meets the strictest TPOT and whose KV fits: a batch limit
        for the decode instances."""
        return min(int(each.limit) for each in self._stations if D in each.pool.role)

    def at(self, rate: float) -> Estimate:
        """The estimate at ``rate`` requests per second, >= 0."""
        states = self._states(rate)
        by_class: dict[str, list[float]] = {}
        total = ttft = tpot = ttft_s = tpot_s = 0.0
        for index, service in enumerate(self._sample[0]):
            first, first_s = self._first(index, states)
            gaps, gaps_s = self._gaps(index, states)
            met = first * gaps
            one = by_class.setdefault(service.slo.name, [0.0, 0.0])
            one[0] += service.share
            one[1] += service.share * met
            total += service.share * met
            ttft += service.share * first
            tpot += service.share * gaps
            ttft_s += service.share * first_s
            tpot_s += service.share * gaps_s
        return Estimate(
            rate=rate,
            attainment=total,
            by_class={name: met / share for name, (share, met) in sorted(by_class.items())},
            ttft=ttft,
            tpot=tpot,
            ttft_s=ttft_s,
            tpot_s=tpot_s,
            waits_s={
                "encode": _busiest(states, E).wait.mean_s,
                "prefill": _busiest(states, P).wait.mean_s,
            },
            utilisation={stage.value: _busiest(states, stage).busy(stage) for stage in Stage},
            batch=_busiest(states, D).decoding.batch,
            bottleneck=self._bottleneck(states, ttft, tpot),
        )

    def _states(self, rate: float) -> list[State]:
        """Encoders first: what leaves them is what arrives at prefill."""
        asked = self._stations[0].demand
        arrival_cv2 = asked.arrival_cv2
        states = [each.state(rate, arrival_cv2) for each in self._stations]
        senders = {e for e, p in self._encode_to_prefill if e != p}
        if not senders or asked.text_share >= 1.0:
            return states
        busiest = max((states[index] for index in senders), key=lambda each: each.utilisation)
        left = departure_cv2(busiest.utilisation, arrival_cv2, busiest.service_cv2, busiest.servers)
        behind = (1.0 - asked.text_share) * left + asked.text_share * arrival_cv2
        return [
            station.state(rate, behind) if E not in station.pool.role else state
            for station, state in zip(self._stations, states, strict=True)
        ]

    def _bottleneck(self, states: list[State], ttft: float, tpot: float) -> Stage:
        """Where requests miss most: by the bound that is missed, then by who waits or is busiest;
        of stages that share their servers, the one with the most work."""
        scarce = {stage: -sum(one.get(stage, 0.0) for one in self._capacity) for stage in Stage}
        busy = {stage: (_busiest(states, stage).busy(stage), scarce[stage]) for stage in Stage}
        if tpot < ttft - 1e-3:
            return D
        if ttft < 1.0 - 1e-3:
            return max(
                (E, P), key=lambda stage: (_busiest(states, stage).wait.mean_s, *busy[stage])
            )
        return max(Stage, key=busy.__getitem__)

    def _first(self, index: int, states: list[State]) -> tuple[float, float]:
        """Probability that the request's first token is in time, and its mean seconds."""
        met = mean_s = 0.0
        for (e, p), share in self._encode_to_prefill.items():
            service = self._sample[p][index]
            fixed_s = self._stations[p].prefill_s(index, states[p])
            other = Wait()
            if service.pictures:
                fixed_s += self._stations[e].encode_s(index, states[e])
                if e != p:
                    other = states[e].wait
                    moved = service.visual * self._problem.footprint.embedding_token_bytes
                    fixed_s += self._problem.embedding_link.seconds(moved)
            bound = service.slo.ttft_s
            slack_s = math.inf if bound is None else bound - fixed_s
            met += share * within(states[p].wait, other, slack_s)
            mean_s += share * (states[p].wait.mean_s + other.mean_s + fixed_s)
        return met, mean_s

    def _gaps(self, index: int, states: list[State]) -> tuple[float, float]:
        """Probability that the request's later tokens are in time, and their mean gap."""
        met = mean_s = 0.0
        for (p, d), share in self._prefill_to_decode.items():
            service = self._sample[d][index]
            moved_s = 0.0
            if p != d:
                moved = service.prompt * self._problem.footprint.kv_token_bytes
                moved_s = self._problem.kv_link.seconds(moved)
            each, mean = token_gap(service, states[d], moved_s)
            met += share * each
            mean_s += share * mean
        return met, mean_s


def token_gap(service: Service, state: State, moved_s: float) -> tuple[float, float]:
    """Of one request at a decode pool: the probability that its mean gap is in time, and that gap,
    where KV arrives ``moved_s`` after the first token."""
    gaps = service.output - 1.0
    decoding = state.decoding
    if math.isinf(decoding.batch):
        return 0.0, math.inf
    if gaps <= 0.0:
        return state.fits, 0.0
    mean = decoding.token_s + moved_s / gaps
    if service.slo.tpot_s is None:
        return state.fits, mean
    slope = state.slope_s / (1.0 - decoding.load)
    variance = decoding.step_s * decoding.scatter_s / gaps + slope**2 * decoding.batch
    room = service.slo.tpot_s - mean
    if variance <= 0.0:
        return state.fits * (room >= 0.0), mean
    return state.fits * _NORMAL.cdf(room / math.sqrt(variance)), mean


def _busiest(states: list[State], stage: Stage) -> State:
    return max((each for each in states if each.serves(stage)), key=lambda one: one.busy(stage))
