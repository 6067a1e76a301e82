"""Layouts that planners propose for a scenario."""

import msgspec

from scheduler.planner import PLANNERS
from scheduler.planner.demand import Shape
from scheduler.planner.problem import Problem
from simulator.planning import Wish, problem_of
from simulator.reproduce.lab import Lab
from simulator.scenario import Scenario
from triptych.core.request import Slo

KEPT = 3
"""Proposals of a planner that are simulated: TriInfer's families."""


def proposed(lab: Lab, case: str, planner: str) -> list[str]:
    """Topologies that a planner would have simulated."""
    found = PLANNERS[planner](problem(lab.scenario(case), lab.target.num_gpus), KEPT)
    return [candidate.topology for candidate in found]


def problem(scenario: Scenario, num_gpus: int) -> Problem:
    """What a planner is told of a scenario. Raises ConfigError."""
    wish = Wish(
        costs=scenario.costs,
        workload=scenario.workload,
        num_gpus=num_gpus,
        level=scenario.attainment,
        machines=scenario.machines,
    )
    asked = problem_of(wish)
    if (slo := scenario.slo) is None:
        return asked

    def promised(_: Shape) -> Slo:
        return Slo("scenario", slo.ttft_s, slo.tpot_s)

    return msgspec.structs.replace(asked, slo_of=promised)
