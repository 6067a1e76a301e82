"""Asks a policy of roles about the fleet, and puts what it says into words.

The same in the server, where an operator reads it, and in the simulator, where it is carried out.
Knows policies by name; moves no instance.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence

import msgspec

from router.fleet_watch import FleetWatch
from scheduler.planner.demand import Shape
from scheduler.planner.problem import Problem
from scheduler.roles import ROLE_POLICIES
from scheduler.roles.advice import Advice, advise
from scheduler.roles.fleet import Fleet, RolePolicy, Switch
from scheduler.roles.prospect import Prospect
from triptych.core.errors import ConfigError
from triptych.core.lifecycle import Role, Stage

LEAST_SAMPLE = 20
"""Requests that must have been answered before anything is predicted."""
MAX_SAID = 20
"""Pieces of advice that are remembered."""
ProblemOf = Callable[[tuple[Shape, ...]], Problem]
"""What the instances are, for requests like these."""
_PREDICTS = ("plan_ahead",)
"""Policies that cannot do without costs."""


class Said(msgspec.Struct, frozen=True):
    """An advice, and when it was given."""

    at_s: float
    advice: Advice


class Decision(msgspec.Struct, frozen=True):
    """Of one moment."""

    at_s: float
    fleet: Fleet
    switches: tuple[Switch, ...]
    advice: tuple[Advice, ...]


class RoleAdviser:
    """One policy with its memory. ``problem_of`` is None where no costs are known."""

    def __init__(self, name: str, watch: FleetWatch, problem_of: ProblemOf | None) -> None:
        """Raises ConfigError for a policy that is not known or cannot work here."""
        if name not in ROLE_POLICIES:
            known = ", ".join(sorted(ROLE_POLICIES))
            raise ConfigError(f"router.roles: {name!r} is not one of {known}")
        if name in _PREDICTS and problem_of is None:
            raise ConfigError(f"router.roles: {name} predicts, and no costs of steps are known")
        self.name = name
        self.said: deque[Said] = deque(maxlen=MAX_SAID)
        """The latest first."""
        self._watch = watch
        self._problem_of = problem_of
        self._policy: RolePolicy | None = None
        self._prospect: Prospect | None = None
        if name not in _PREDICTS:
            self._policy = ROLE_POLICIES[name](Problem(shapes=(), kinds=(), num_gpus=1))

    def look(self) -> Fleet:
        """The instances now; nobody is asked."""
        return self._watch.fleet()

    def decide(self, now_s: float, moving: Mapping[str, Role] | None = None) -> Decision:
        """What should change now. ``moving``: see ``FleetWatch.fleet``."""
        fleet = self._watch.fleet(moving)
        self._learn()
        if self._policy is None:
            return Decision(now_s, fleet, (), ())
        switches = tuple(self._policy.decide(fleet, now_s))
        advice = advise(fleet, switches, self._prospect)
        self.said.extendleft(Said(now_s, one) for one in advice)
        return Decision(now_s, fleet, switches, advice)

    def missing(self, fleet: Fleet) -> Sequence[str]:
        """What the policy would need and does not have, in words."""
        lacking = []
        if self.name == "static":
            lacking.append("router.roles is static: nothing is advised")
        if self._problem_of is None:
            lacking.append("no costs of steps are known: no capacities, no predictions")
        elif self._prospect is None:
            lacking.append(f"fewer than {LEAST_SAMPLE} requests were answered: no predictions")
        if self.name == "elasticmm" and not any(one.group for one in fleet.members):
            lacking.append("instances have no modality groups: all count as multimodal")
        unknown = [stage.value for stage in Stage if stage not in fleet.load.capacity]
        if self._problem_of is not None and unknown:
            lacking.append(f"capacities of {', '.join(unknown)}: nothing of it was asked for")
        return lacking

    def _learn(self) -> None:
        """Predict as soon as enough requests were seen."""
        if self._prospect is not None or self._problem_of is None:
            return
        shapes = self._watch.sample
        if len(shapes) < LEAST_SAMPLE:
            return
        problem = self._problem_of(shapes)
        self._prospect = Prospect(problem)
        if self._policy is None:
            self._policy = ROLE_POLICIES[self.name](problem)
