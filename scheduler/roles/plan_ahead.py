"""Our policy of roles: change them when the requests that a change will save are more than those
that it costs.

Forecasts the load over a horizon, bursts included, asks the closed form about every fleet that is
one or two switches away (combined roles as well), and counts what an instance loses while it
drains, switches and fills its cache again. Knows no queue rule.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

import msgspec

from scheduler.planner.problem import Problem
from scheduler.planner.search import ROLES
from scheduler.roles import forecast
from scheduler.roles.fleet import (
    Fleet,
    Load,
    Member,
    Standing,
    Switch,
    is_safe,
    least_loss,
)
from scheduler.roles.prospect import Outlook, Prospect
from triptych.core.ids import InstanceId
from triptych.core.lifecycle import Role, Stage

E, P, D = Stage.ENCODE, Stage.PREFILL, Stage.DECODE


class Knobs(msgspec.Struct, frozen=True):
    """Ours, but for ``switch_s``: EPDServe measured under 0.7 s (ICML 2025, section 3.2.4)."""

    period_s: float = 5.0
    """Between two decisions."""
    horizon_s: float = 60.0
    """Over which gain and cost are counted."""
    deviations: float = 1.0
    """Of the burst that the fleet should stand, in standard deviations of surprises."""
    switch_s: float = 0.7
    """Weights unloaded and loaded."""
    cache_hit: float = 0.3
    """Share of an instance's work that its cached KV saves: lost until it is full again."""
    hysteresis: float = 0.02
    """Share of the horizon's requests that a change must save beyond its cost."""
    dwell_s: float = 30.0
    """An instance keeps a new role at least so long."""
    max_switches: int = 2
    """A decision."""
    roles: tuple[str, ...] = tuple(ROLES)
    """Roles that an instance may be given."""
    series: forecast.Knobs = forecast.DEFAULTS


DEFAULTS = Knobs()


class PlanAhead:
    """One problem's fleet: its first kind of instance, its sample of requests, its SLOs."""

    def __init__(self, problem: Problem, knobs: Knobs = DEFAULTS) -> None:
        self._knobs = knobs
        self.prospect = Prospect(problem)
        self._roles = [
            role
            for name, role in ROLES.items()
            if name in knobs.roles and self.prospect.can_be(role)
        ]
        self._series = {name: forecast.Series(knobs.series) for name in _RATES}
        self._next_s = float("-inf")
        self._switched_s: dict[InstanceId, float] = {}

    def decide(self, fleet: Fleet, now_s: float) -> Sequence[Switch]:
        """The best change of at most ``max_switches`` equal switches, if it is worth its cost.

        Sees the load at every call; decides once a period, and not while an instance is switching.
        """
        for name, series in self._series.items():
            series.see(getattr(fleet.load, name), now_s)
        if now_s < self._next_s or not fleet.is_settled:
            return ()
        self._next_s = now_s + self._knobs.period_s
        outlook = self.prospect.outlook(self.expected(fleet))
        if outlook.rate <= 0.0:
            return ()
        best: tuple[float, list[Switch]] = (0.0, [])
        counts = fleet.counts()
        served = self.prospect.served(counts, outlook)
        least = self._knobs.hysteresis * outlook.rate * self._knobs.horizon_s
        if (outlook.rate - served) * self._knobs.horizon_s <= least:
            return ()
        for switches in self._changes(fleet, now_s):
            enough = max(least, best[0])
            saved = self._saved(fleet, switches, outlook, served, enough)
            if saved > enough:
                best = saved, switches
        for switch in best[1]:
            self._switched_s[switch.instance] = now_s
        return best[1]

    def expected(self, fleet: Fleet) -> Load:
        """The load in the middle of the horizon, with its burst, and what waits now as if it came
        evenly over the horizon: it must be served as well."""
        horizon_s, deviations = self._knobs.horizon_s, self._knobs.deviations
        rates = {name: one.burst(horizon_s / 2, deviations) for name, one in self._series.items()}
        rates["visual"] += fleet.queue(E).tokens / horizon_s
        rates["text"] += fleet.queue(P).tokens / horizon_s
        rates["output"] += fleet.queue(D).jobs * _answer(fleet.load) / horizon_s
        return Load(capacity=fleet.load.capacity, **rates)

    def _changes(self, fleet: Fleet, now_s: float) -> Iterator[list[Switch]]:
        """Every safe change of one or more instances of one role to another."""
        by_role: dict[Role, list[Member]] = {}
        for one in least_loss(fleet.members):
            rested_s = now_s - self._switched_s.get(one.id, float("-inf"))
            if one.standing is Standing.READY and rested_s >= self._knobs.dwell_s:
                by_role.setdefault(one.role, []).append(one)
        for before in (role for role in ROLES.values() if role in by_role):
            for after in self._roles:
                for number in range(1, self._knobs.max_switches + 1):
                    chosen = by_role[before][:number]
                    switches = [Switch(one.id, after, one.group) for one in chosen]
                    if after != before and len(chosen) == number and is_safe(fleet, switches):
                        yield switches

    def _saved(
        self,
        fleet: Fleet,
        switches: Sequence[Switch],
        outlook: Outlook,
        served: float,
        enough: float,
    ) -> float:
        """Requests within their SLO over the horizon, more than without the change; 0 if they are
        surely not more than ``enough``."""
        members = {one.id: one for one in fleet.members}
        moving = [members[switch.instance] for switch in switches]
        without = Counter(fleet.counts())
        without.subtract(one.role for one in moving)
        then = without + Counter(switch.role for switch in switches)
        horizon_s = self._knobs.horizon_s
        gain = self.prospect.served(then, outlook, served + enough / horizon_s) - served
        if gain <= 0.0:
            return 0.0
        away_s = min(horizon_s, max(self._away_s(one, fleet.load) for one in moving))
        lost = served - min(served, self.prospect.served(without, outlook))
        return gain * (horizon_s - away_s) - lost * away_s

    def _away_s(self, one: Member, load: Load) -> float:
        """Seconds of an instance's work that a switch costs: what it has to end, the switch, and
        what its cached KV would have saved while it fills again."""
        work_s = 0.0
        for stage, waiting in one.waiting.items():
            able = load.capacity.get(stage, 0.0)
            # What waits to be decoded is KV: its work is the answers that it stands for.
            tokens = waiting.tokens if stage is not D else waiting.jobs * _answer(load)
            work_s += tokens / able if able > 0.0 else 0.0
        if one.running and load.capacity.get(D, 0.0) > 0.0:
            # They end together, each half done, in about the time of one half answer.
            work_s += _answer(load) / 2 * one.running / load.capacity[D]
        refill_s = 0.0
        if one.role & {P, D}:
            refill_s = self._knobs.cache_hit * one.kv_occupancy * self._knobs.horizon_s / 2
        return work_s + self._knobs.switch_s + refill_s


_RATES = ("requests", "images", "text", "visual", "output")


def _answer(load: Load) -> float:
    return load.output / load.requests if load.requests > 0.0 else 0.0
