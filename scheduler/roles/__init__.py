"""Roles over time: policies that say which instance should serve which stages from now on.

Values in, values out; switching itself is somebody else's work.
"""

from collections.abc import Callable

from scheduler.planner.problem import Problem
from scheduler.roles.elasticmm import ElasticMm
from scheduler.roles.epdserve import EpdServe
from scheduler.roles.fleet import RolePolicy
from scheduler.roles.modserve import ModServe
from scheduler.roles.plan_ahead import PlanAhead
from scheduler.roles.static import Static

ROLE_POLICIES: dict[str, Callable[[Problem], RolePolicy]] = {
    "elasticmm": lambda _: ElasticMm(),
    "epdserve": lambda _: EpdServe(),
    "modserve": lambda _: ModServe(),
    "plan_ahead": PlanAhead,
    "static": lambda _: Static(),
}
"""By name: a policy with a state of its own. The problem describes instances and requests."""
