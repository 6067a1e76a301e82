"""The instances as policies of roles see them, what they are asked for, and what a policy says.

Frozen values; whoever has the instances makes them. Knows no policy, and not how a role is changed.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import Protocol

import msgspec

from triptych.core.ids import InstanceId
from triptych.core.lifecycle import Role, Stage


class Standing(Enum):
    """Where an instance is between two roles."""

    READY = "ready"
    SWITCHING = "switching"
    """Serves nothing now; ``Member.role`` is what it will serve."""
    DRAINING = "draining"
    """Ends what it has, takes nothing, and leaves the fleet."""


class Waiting(msgspec.Struct, frozen=True):
    """What waits at one stage of one instance."""

    jobs: int = 0
    tokens: int = 0
    """Visual tokens to encode, prompt tokens to compute; of decode, tokens of KV to take over."""


class Member(msgspec.Struct, frozen=True):
    """One instance."""

    id: InstanceId
    role: Role
    standing: Standing = Standing.READY
    waiting: Mapping[Stage, Waiting] = {}
    running: int = 0
    """Sequences that decode."""
    utilisation: float = 0.0
    """Share of the last window in which it computed."""
    attainment: Mapping[str, float] = {}
    """By SLO class: share of the requests of the last window that it helped to meet theirs."""
    kv_occupancy: float = 0.0
    """Share of its KV blocks that hold something, cached prefixes included."""
    group: str = ""
    """Modality group it belongs to (ElasticMM): ``text``, ``multimodal``, or none."""


class Load(msgspec.Struct, frozen=True):
    """What arrived over the last window, per second, and what one instance can do."""

    requests: float = 0.0
    images: float = 0.0
    text: float = 0.0
    """Text tokens of prompts that must be computed."""
    visual: float = 0.0
    """Visual tokens; to encode and to prefill."""
    output: float = 0.0
    """Tokens of answers."""
    capacity: Mapping[Stage, float] = {}
    """Tokens per second that one instance serves of a stage within the SLO, if it does nothing
    else: visual tokens, prompt tokens, output tokens. Measured, or from a profile."""

    def tokens(self, stage: Stage) -> float:
        """Tokens per second that a stage is asked for."""
        asked = {
            Stage.ENCODE: self.visual,
            Stage.PREFILL: self.text + self.visual,
            Stage.DECODE: self.output,
        }
        return asked[stage]

    def instances(self, stage: Stage) -> float:
        """Instances that the stage would fill; 0 if its capacity is not known."""
        able = self.capacity.get(stage, 0.0)
        return self.tokens(stage) / able if able > 0.0 else 0.0


class Fleet(msgspec.Struct, frozen=True):
    """All instances at one moment."""

    members: tuple[Member, ...]
    load: Load = Load()
    groups: Mapping[str, Load] = {}
    """The load by modality group, where requests are told apart."""

    def ready(self, stage: Stage) -> list[Member]:
        """Those that serve ``stage`` now."""
        return [one for one in self.members if one.standing is Standing.READY and stage in one.role]

    def queue(self, stage: Stage) -> Waiting:
        """All that waits at a stage."""
        waits = [one.waiting.get(stage, Waiting()) for one in self.members]
        return Waiting(sum(each.jobs for each in waits), sum(each.tokens for each in waits))

    @property
    def is_settled(self) -> bool:
        """Whether no instance is between two roles."""
        return all(one.standing is not Standing.SWITCHING for one in self.members)

    @property
    def attainment(self) -> float:
        """Of the worst class at the worst instance; 1 where nothing is known."""
        known = [share for one in self.members for share in one.attainment.values()]
        return min(known, default=1.0)

    def counts(self) -> Counter[Role]:
        """Instances by role, those included that are about to have it; none that leave."""
        staying = (one for one in self.members if one.standing is not Standing.DRAINING)
        return Counter(one.role for one in staying)


class Switch(msgspec.Struct, frozen=True):
    """An instance should serve other stages."""

    instance: InstanceId
    role: Role
    group: str = ""
    """Its modality group from then on, for policies that have groups."""


class RolePolicy(Protocol):
    """Who should serve what from now on.

    Called again and again, with ``now_s`` that never falls; keeps what it must remember, and
    answers equal calls with equal switches. Whoever calls carries every switch out, or tells in
    the next ``Fleet`` that it did not. No answer takes the last ready instance from a stage.
    """

    def decide(self, fleet: Fleet, now_s: float) -> Sequence[Switch]:
        """Switches to begin now; none is the usual answer."""
        ...


def is_safe(fleet: Fleet, switches: Iterable[Switch]) -> bool:
    """Whether every stage that is served now goes on being served while the switches are under
    way, each instance is ready, and none is named twice."""
    moving = [switch.instance for switch in switches]
    ready = {one.id for one in fleet.members if one.standing is Standing.READY}
    if len(set(moving)) < len(moving) or not ready.issuperset(moving):
        return False
    for stage in Stage:
        serving = fleet.ready(stage)
        if serving and all(one.id in moving for one in serving):
            return False
    return True


def least_loss(members: Iterable[Member]) -> list[Member]:
    """Members in the order in which one would take them away: fewest jobs, then least KV."""

    def loss(one: Member) -> tuple[int, float, str]:
        jobs = one.running + sum(each.jobs for each in one.waiting.values())
        return jobs, one.kv_occupancy, one.id

    return sorted(members, key=loss)
