"""EPDServe's rule: an instance goes to the stage with the longest queue.

EPDServe (ICML 2025, section 3.2.4) as its code has it. Knows queue lengths only; instances with
more than one stage are not touched, because the source has none.
"""

from collections.abc import Sequence

import msgspec

from scheduler.roles.fleet import Fleet, Member, Standing, Switch, is_safe, least_loss
from triptych.core.lifecycle import Stage


class Knobs(msgspec.Struct, frozen=True):
    """Defaults are the source's."""

    period_s: float = 5.0
    """Between two decisions."""
    balanced: float = 0.5
    """Nothing is done if every queue is at least this share of the longest."""


DEFAULTS = Knobs()


class EpdServe:
    """At most one switch a period."""

    def __init__(self, knobs: Knobs = DEFAULTS) -> None:
        self._knobs = knobs
        self._next_s = float("-inf")

    def decide(self, fleet: Fleet, now_s: float) -> Sequence[Switch]:
        """From the stage with most instances, of those with more than one and a shorter queue."""
        if now_s < self._next_s:
            return ()
        self._next_s = now_s + self._knobs.period_s
        queues = {stage: fleet.queue(stage).jobs for stage in Stage}
        target = max(Stage, key=lambda stage: queues[stage])
        longest = queues[target]
        if longest == 0 or min(queues.values()) >= self._knobs.balanced * longest:
            return ()
        engines = {stage: _engines(fleet, stage) for stage in Stage}
        donors = [stage for stage in Stage if len(engines[stage]) > 1 and queues[stage] < longest]
        if not donors:
            return ()
        donor = max(donors, key=lambda stage: len(engines[stage]))
        switch = Switch(least_loss(engines[donor])[0].id, frozenset({target}))
        return (switch,) if is_safe(fleet, (switch,)) else ()


def _engines(fleet: Fleet, stage: Stage) -> list[Member]:
    return [one for one in fleet.members if one.role == {stage} and one.standing is Standing.READY]
