"""Decisions about roles in words, for a person who carries them out or not.

Knows the switches, the fleet and what the closed form expects of both layouts.
"""

from collections import Counter
from collections.abc import Sequence

import msgspec

from scheduler.roles.fleet import Fleet, Load, Switch
from scheduler.roles.prospect import Prospect
from triptych.core.ids import InstanceId
from triptych.core.lifecycle import Role, Stage
from triptych.core.topology import name


class Advice(msgspec.Struct, frozen=True):
    """One instance to move."""

    instance: InstanceId
    before: str
    """Roles as a topology writes them."""
    after: str
    stage: str
    """The stage that is short of instances."""
    queue_s: float
    """Seconds of work that wait at that stage, over all that serve it."""
    attainment_before: float | None
    """Predicted with the roles as they are; None without a prediction."""
    attainment_after: float | None
    """Predicted with all switches of the decision done."""
    text: str
    """One line."""


def advise(
    fleet: Fleet,
    switches: Sequence[Switch],
    prospect: Prospect | None = None,
    expected: Load | None = None,
) -> tuple[Advice, ...]:
    """An advice for each switch of a decision; none where nothing should change.

    ``prospect`` predicts attainment under the ``expected`` load (the fleet's own if None).
    """
    load = expected or fleet.load
    shares: list[float | None] = [None, None]
    if prospect is not None and switches and load.requests > 0.0:
        outlook = prospect.outlook(load)
        for place, counts in enumerate((fleet.counts(), after(fleet, switches))):
            estimate = prospect.estimate(counts, outlook)
            shares[place] = None if estimate is None else estimate.attainment
    roles = {one.id: one.role for one in fleet.members}
    return tuple(_one(fleet, switch, roles[switch.instance], shares) for switch in switches)


def after(fleet: Fleet, switches: Sequence[Switch]) -> Counter[Role]:
    """Instances by role when all switches are done."""
    roles = {one.id: one.role for one in fleet.members}
    counts = fleet.counts()
    counts.subtract(roles[switch.instance] for switch in switches)
    return +(counts + Counter(switch.role for switch in switches))


def queue_s(fleet: Fleet, stage: Stage) -> float:
    """Seconds until what waits at a stage is done by those that serve it; 0 where no capacity is
    known."""
    able = fleet.load.capacity.get(stage, 0.0) * len(fleet.ready(stage))
    waiting = fleet.queue(stage)
    if stage is Stage.DECODE:
        answer = fleet.load.output / fleet.load.requests if fleet.load.requests > 0.0 else 0.0
        return waiting.jobs * answer / able if able > 0.0 else 0.0
    return waiting.tokens / able if able > 0.0 else 0.0


def _one(fleet: Fleet, switch: Switch, before: Role, shares: Sequence[float | None]) -> Advice:
    gained = switch.role - before or switch.role
    stage = max((each for each in Stage if each in gained), key=lambda each: queue_s(fleet, each))
    seconds = queue_s(fleet, stage)
    where = _words(switch.role) + (f" of group {switch.group}" if switch.group else "")
    reasons = [f"queue of {stage.value} {seconds:.1f} s at this rate"]
    if seconds <= 0.0:
        reasons = [f"more {stage.value} will be needed"]
    if shares[0] is not None and shares[1] is not None:
        reasons.append(f"predicted attainment {shares[0]:.2f} -> {shares[1]:.2f}")
    return Advice(
        instance=switch.instance,
        before=name(before),
        after=name(switch.role),
        stage=stage.value,
        queue_s=seconds,
        attainment_before=shares[0],
        attainment_after=shares[1],
        text=f"move {switch.instance} to {where}: {'; '.join(reasons)}",
    )


def _words(role: Role) -> str:
    return "+".join(stage.value for stage in Stage if stage in role)
