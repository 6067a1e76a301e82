"""What a fleet's roles would make of a load: the planner's closed form, asked about instances that
exist.

Takes the mix of requests from a sample, their number and size from the load, and the speed of
stages from what was measured. Knows no time and no policy.
"""

import math
from collections.abc import Mapping

import msgspec

from scheduler.planner.candidate import sustained
from scheduler.planner.closed_form import Estimate, Prediction, Work, Works
from scheduler.planner.demand import scaled
from scheduler.planner.problem import Layout, Pool, Problem
from scheduler.planner.search import ROLES
from scheduler.roles.fleet import Load
from triptych.core.lifecycle import Role, Stage

SAMPLE = 32
"""Requests of the sample that are kept, evenly: a fleet is estimated often."""
_PRECISION = 0.02
_SIZE = 8.0
"""A load's requests are thought to be at most so many times larger or smaller than the sample's."""
_SPEED = 4.0
"""The same for measured speeds against those of the costs."""


class Outlook(msgspec.Struct, frozen=True, eq=False):
    """One load, ready to be asked about layouts."""

    rate: float
    work: Work


class Prospect:
    """Pure. Every instance is of the problem's first kind, with its first token budget."""

    def __init__(self, problem: Problem) -> None:
        problem.check()
        step = math.ceil(len(problem.shapes) / SAMPLE)
        problem = msgspec.structs.replace(problem, shapes=problem.shapes[::step])
        self._problem = problem
        self._kind = problem.kinds[0]
        self._works = Works(problem)
        self._known = self._works.of(self._kind, problem.chunks[0])

    def can_be(self, role: Role) -> bool:
        """Whether the weights that a role needs fit."""
        return self._kind in self._problem.kinds_of(role)

    def outlook(self, load: Load) -> Outlook:
        """The sample's requests, as many and as large as the load says."""
        if load.requests <= 0.0:
            return Outlook(0.0, self._known)
        sample, able = self._known.demand, load.capacity
        visual = sample.mean(lambda one: one.visual)
        computed = sample.mean(lambda one: one.computed)
        made = scaled(
            sample,
            load.requests,
            encode=_times(load.visual / load.requests, visual, _SIZE),
            prefill=_times((load.text + load.visual) / load.requests, computed, _SIZE),
            decode=_times(load.output / load.requests, sample.output.mean, _SIZE),
            slower=(
                _slowness(able.get(Stage.ENCODE, 0.0), sample.encode.mean, visual),
                _slowness(able.get(Stage.PREFILL, 0.0), sample.prefill.mean, computed),
            ),
        )
        return Outlook(load.requests, self._works.made(made, self._kind, self._problem.chunks[0]))

    def estimate(self, counts: Mapping[Role, int], outlook: Outlook) -> Estimate | None:
        """Of a fleet with so many instances by role; None if a stage has none."""
        prediction = self._prediction(counts, outlook)
        return None if prediction is None else prediction.at(outlook.rate)

    def served(self, counts: Mapping[Role, int], outlook: Outlook, beyond: float = 0.0) -> float:
        """Requests per second that meet their SLO: of all that come, or, if more is gained so, of
        those that admission lets in. 0 if a stage has no instance, and where it is not more than
        ``beyond``, which is found out sooner."""
        prediction = self._prediction(counts, outlook)
        level, rate = self._problem.level, outlook.rate
        if prediction is None or rate <= 0.0 or prediction.bound <= beyond:
            return 0.0
        met = prediction.at(rate).attainment
        most = min(prediction.bound, rate)
        if met >= level or met * rate >= level * most:
            return met * rate
        # Admission must hold the rate where ``beyond`` is reached, or it is not reached at all.
        needed = beyond / level
        if needed > 0.0 and (needed >= most or prediction.at(needed).attainment < level):
            return met * rate if met * rate > beyond else 0.0
        return max(met * rate, level * sustained(prediction, level, most, _PRECISION))

    def _prediction(self, counts: Mapping[Role, int], outlook: Outlook) -> Prediction | None:
        layout: Layout = tuple(
            Pool(role, counts[role], self._kind)
            for role in ROLES.values()
            if counts.get(role, 0) > 0
        )
        if {stage for pool in layout for stage in pool.role} != set(Stage):
            return None
        return Prediction(self._problem, layout, [outlook.work] * len(layout))


def _times(asked: float, known: float, most: float) -> float:
    """``asked`` over ``known``, within limits; 1 where the sample has none of it."""
    return min(most, max(1.0 / most, asked / known)) if known > 0.0 else 1.0


def _slowness(measured: float, seconds: float, tokens: float) -> float:
    """Times that a stage is slower than its costs say, by its measured tokens per second."""
    if measured <= 0.0 or seconds <= 0.0:
        return 1.0
    return _times(tokens / seconds, measured, _SPEED)
