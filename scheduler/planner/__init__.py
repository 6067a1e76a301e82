"""Plans: which instances to build of N GPUs for a workload and its SLOs, by closed forms.

Values in, values out; what is best here is meant to be simulated by somebody else.
"""

from collections.abc import Callable

from scheduler.planner.candidate import Candidate
from scheduler.planner.distserve import distserve
from scheduler.planner.problem import Problem
from scheduler.planner.published import epdserve, proportional
from scheduler.planner.search import closed_form

PLANNERS: dict[str, Callable[[Problem, int], list[Candidate]]] = {
    "closed_form": closed_form,
    "distserve": distserve,
    "epdserve": epdserve,
    "proportional": proportional,
}
"""By name: a problem and how many candidates to keep, to candidates, best first."""
