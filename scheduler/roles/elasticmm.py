"""ElasticMM's elastic parallelism: two modality groups, and instances that move to where they gain
more than they cost.

ElasticMM (NeurIPS 2025, sections 3.2 and 3.3; arXiv 2507.10069), from the paper and not from its
code, whose burst tolerance ignores the allocation it is asked about. Gain and cost go back to
LoongServe (SOSP 2024). Knows queues, running sequences and loads by group.
"""

import math
from collections.abc import Sequence

import msgspec

from scheduler.roles.fleet import Fleet, Load, Member, Standing, Switch, is_safe, least_loss
from triptych.core.lifecycle import Stage

E, P, D = Stage.ENCODE, Stage.PREFILL, Stage.DECODE
TEXT, MULTIMODAL = "text", "multimodal"
_STAGES = {TEXT: (P, D), MULTIMODAL: (E, P, D)}


class Knobs(msgspec.Struct, frozen=True):
    """Defaults are those of the source's code."""

    rebalance_s: float = 60.0
    """Between two proactive divisions of the instances among the groups."""
    threshold: int = 20
    """Waiting jobs of a stage beyond which it has overflowed."""
    migration_s: float = 0.1
    """To move one running request: M."""
    penalty: float = 0.05
    """Weight of the slow-down of those that stay: w."""
    efficiency: tuple[float, float, float] = (0.80, 0.90, 0.75)
    """Of each further instance of encode, prefill, decode. That ``n`` instances are ``1 + (n - 1)
    * efficiency`` quick is our reading; the source gives the constants."""
    cooldown_s: float = 5.0
    """Between two reactive switches; ours, so that a switch can show its effect."""
    memory_s: float = 300.0
    """Over which the average load of a group is taken; ours."""
    max_switches: int = 4
    """A decision; ours."""


DEFAULTS = Knobs()


class ElasticMm:
    """Proactive by burst tolerance, reactive by gain and cost. Acts on single-stage roles; members
    without a group count as multimodal."""

    def __init__(self, knobs: Knobs = DEFAULTS) -> None:
        self._knobs = knobs
        self._rebalanced_s = self._reacted_s = self._seen_s = float("-inf")
        self._average: dict[str, float] = {}

    def decide(self, fleet: Fleet, now_s: float) -> Sequence[Switch]:
        """A division of the groups when it is due, else a reaction to a queue that overflowed."""
        self._learn(fleet, now_s)
        if now_s - self._rebalanced_s >= self._knobs.rebalance_s:
            self._rebalanced_s = now_s
            if switches := self._divide(fleet):
                return switches
        if now_s - self._reacted_s >= self._knobs.cooldown_s:
            switch = self._react(fleet)
            if switch is not None and is_safe(fleet, (switch,)):
                self._reacted_s = now_s
                return (switch,)
        return ()

    def _learn(self, fleet: Fleet, now_s: float) -> None:
        """Average number of instances that each group's load fills."""
        share = 1.0 - math.exp(-max(0.0, now_s - self._seen_s) / self._knobs.memory_s)
        self._seen_s = now_s
        for group, stages in _STAGES.items():
            needed = sum(fleet.groups.get(group, Load()).instances(stage) for stage in stages)
            before = self._average.get(group, needed)
            self._average[group] = before + share * (needed - before)

    def _divide(self, fleet: Fleet) -> list[Switch]:
        """Spare instances, one by one, to the group with the lowest burst tolerance.

        ``bt = N_peak / N_average``: instances that the group has at its peak over those that it
        fills on average. An instance moves only if the lower of both tolerances rises by it.
        """
        have = {group: _single(fleet, group) for group in _STAGES}
        if not all(have.values()) or min(self._average.values()) <= 0.0:
            return []
        size = {group: len(members) for group, members in have.items()}
        switches: list[Switch] = []
        while len(switches) < self._knobs.max_switches:
            poor = min(_STAGES, key=lambda group: size[group] / self._average[group])
            rich = TEXT if poor == MULTIMODAL else MULTIMODAL
            if (size[rich] - 1) / self._average[rich] <= size[poor] / self._average[poor]:
                break
            switch = self._give(fleet, rich, poor, switches)
            if switch is None:
                break
            switches.append(switch)
            size[rich] -= 1
            size[poor] += 1
        return switches

    def _give(self, fleet: Fleet, rich: str, poor: str, begun: Sequence[Switch]) -> Switch | None:
        """An instance of ``rich``'s idlest stage to ``poor``'s fullest."""
        moved = {switch.instance for switch in begun}
        target = max(_STAGES[poor], key=lambda stage: self._fullness(fleet, poor, stage))
        for stage in sorted(_STAGES[rich], key=lambda each: self._fullness(fleet, rich, each)):
            members = [one for one in _single(fleet, rich, stage) if one.id not in moved]
            if len(members) > 1:
                switch = Switch(least_loss(members)[0].id, frozenset({target}), poor)
                if is_safe(fleet, [*begun, switch]):
                    return switch
        return None

    def _fullness(self, fleet: Fleet, group: str, stage: Stage) -> float:
        members = len(_single(fleet, group, stage))
        needed = fleet.groups.get(group, Load()).instances(stage)
        return needed / members if members else math.inf

    def _react(self, fleet: Fleet) -> Switch | None:
        """The instance with the most gain above its cost, for the stage that overflowed most."""
        queues = {
            (group, stage): _jobs(fleet, group, stage)
            for group, stages in _STAGES.items()
            for stage in stages
        }
        (group, stage), waiting = max(queues.items(), key=lambda item: item[1])
        if waiting <= self._knobs.threshold:
            return None
        gain = self._gain(fleet, group, stage, waiting)
        best: tuple[float, Switch] | None = None
        for donor in _STAGES:
            for other in _STAGES[donor]:
                members = _single(fleet, donor, other)
                if (donor, other) == (group, stage) or len(members) < 2:
                    continue
                worth = gain - self._cost(fleet, donor, other)
                if worth > 0.0 and (best is None or worth > best[0]):
                    switch = Switch(least_loss(members)[0].id, frozenset({stage}), group)
                    best = worth, switch
        return None if best is None else best[1]

    def _gain(self, fleet: Fleet, group: str, stage: Stage, waiting: int) -> float:
        """``sum over waiting r of (T(R, E) - T(R, E + e)) / len(r)``, seconds per token."""
        load = fleet.groups.get(group, fleet.load)
        length = _length(load, stage)
        now = self._seconds(load, stage, waiting, len(_single(fleet, group, stage)))
        then = self._seconds(load, stage, waiting, len(_single(fleet, group, stage)) + 1)
        return waiting * (now - then) / length

    def _cost(self, fleet: Fleet, group: str, stage: Stage) -> float:
        """``sum over r at e of (M + w * L(B, E - e)) / len(r)``, seconds per token."""
        load = fleet.groups.get(group, fleet.load)
        members = _single(fleet, group, stage)
        jobs = sum(one.running for one in members) if stage is D else 0
        jobs += _jobs(fleet, group, stage)
        slower = self._seconds(load, stage, jobs, len(members) - 1)
        slower -= self._seconds(load, stage, jobs, len(members))
        moved = least_loss(members)[0].running
        together = moved * self._knobs.migration_s + jobs * self._knobs.penalty * slower
        return together / _length(load, stage)

    def _seconds(self, load: Load, stage: Stage, jobs: int, number: int) -> float:
        """T: until so many jobs of mean length are done by ``number`` instances."""
        able = load.capacity.get(stage, 0.0)
        if not jobs or able <= 0.0:
            return 0.0
        if number < 1:
            return math.inf
        efficiency = self._knobs.efficiency[(E, P, D).index(stage)]
        return jobs * _length(load, stage) / (able * (1.0 + (number - 1) * efficiency))


def _single(fleet: Fleet, group: str, stage: Stage | None = None) -> list[Member]:
    """Ready members of a group that serve one stage only: ``stage``, or any."""
    return [
        one
        for one in fleet.members
        if (one.group or MULTIMODAL) == group
        and one.standing is Standing.READY
        and (len(one.role) == 1 if stage is None else one.role == {stage})
    ]


def _jobs(fleet: Fleet, group: str, stage: Stage) -> int:
    return sum(
        one.waiting[stage].jobs for one in _single(fleet, group, stage) if stage in one.waiting
    )


def _length(load: Load, stage: Stage) -> float:
    """Mean tokens of a job."""
    return max(1.0, load.tokens(stage) / load.requests) if load.requests > 0.0 else 1.0
