"""ModServe's autoscaling: as many instances of each modality as its load fills.

ModServe (SoCC 2025, section 4.3): replicas = ceil(load / capacity), in tokens per second. The
source starts and stops machines; here the number of instances is given, so what one modality has
too many of goes to the other. Knows loads and attainment, no queues.
"""

import math
from collections.abc import Sequence

import msgspec

from scheduler.roles.fleet import Fleet, Load, Standing, Switch, is_safe, least_loss
from triptych.core.lifecycle import Role, Stage

E, P, D = Stage.ENCODE, Stage.PREFILL, Stage.DECODE


class Knobs(msgspec.Struct, frozen=True):
    """Defaults are the source's, where it has one."""

    period_s: float = 300.0
    attainment: float = 0.99
    """Below this a decision is made before the period is over."""
    urgent_s: float = 30.0
    """Between two decisions at low attainment; ours, so that a switch can show its effect."""
    image: Role = frozenset({E})
    text: tuple[Role, ...] = ()
    """Roles of text instances: one for all (the source's), or prefill and decode apart; as the
    fleet has them if empty."""
    max_switches: int = 8
    """A decision, ours: the source's machines are started all at once."""


DEFAULTS = Knobs()


class ModServe:
    """Instances of other roles than those of its knobs are left alone."""

    def __init__(self, knobs: Knobs = DEFAULTS) -> None:
        self._knobs = knobs
        self._decided_s = float("-inf")

    def decide(self, fleet: Fleet, now_s: float) -> Sequence[Switch]:
        """From roles with more instances than their load fills, most first, to those with fewer."""
        waited_s = now_s - self._decided_s
        is_urgent = fleet.attainment < self._knobs.attainment
        if waited_s < (self._knobs.urgent_s if is_urgent else self._knobs.period_s):
            return ()
        self._decided_s = now_s
        roles = (self._knobs.image, *(self._knobs.text or _text_roles(fleet)))
        have = [fleet.counts()[role] for role in roles]
        wanted = wanted_of([replicas(fleet.load, role) for role in roles], sum(have))
        spare = [count - want for count, want in zip(have, wanted, strict=True)]
        switches: list[Switch] = []
        while len(switches) < self._knobs.max_switches and min(spare) < 0 < max(spare):
            giver, taker = spare.index(max(spare)), spare.index(min(spare))
            moved = {switch.instance for switch in switches}
            for one in least_loss(fleet.members):
                is_free = one.standing is Standing.READY and one.id not in moved
                switch = Switch(one.id, roles[taker])
                if one.role == roles[giver] and is_free and is_safe(fleet, [*switches, switch]):
                    switches.append(switch)
                    spare[taker] += 1
                    break
            spare[giver] -= 1
        return switches


def _text_roles(fleet: Fleet) -> tuple[Role, ...]:
    """One for prefill and decode, unless there are only instances of each."""
    has_both = fleet.counts()[frozenset({P, D})] > 0
    return (frozenset({P, D}),) if has_both else (frozenset({P}), frozenset({D}))


def replicas(load: Load, role: Role) -> int:
    """Instances of ``role`` that the load fills, at least one."""
    return max(1, math.ceil(sum(load.instances(stage) for stage in role) - 1e-9))


def wanted_of(needed: Sequence[int], number: int) -> list[int]:
    """``needed``, if there are so many; else ``number`` in proportion, at least one each (as far
    as they go)."""
    if sum(needed) <= number or number < len(needed):
        return list(needed)
    exact = [(number - len(needed)) * one / sum(needed) for one in needed]
    whole = [1 + math.floor(one) for one in exact]
    order = sorted(range(len(needed)), key=lambda i: (math.floor(exact[i]) - exact[i], i))
    for index in order[: number - sum(whole)]:
        whole[index] += 1
    return whole
