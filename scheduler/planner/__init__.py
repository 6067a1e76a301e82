"""Plans: which instances to build of N GPUs for a workload and its SLOs, by closed forms.

Values in, values out; what is best here is meant to be simulated by somebody else.
"""

from collections.abc import Callable

from scheduler.planner import distserve, published, search
from scheduler.planner.candidate import Candidate
from scheduler.planner.problem import Problem

PLANNERS: dict[str, Callable[[Problem, int], list[Candidate]]] = {
    "closed_form": search.closed_form,
    "distserve": distserve.distserve,
    "epdserve": published.epdserve,
    "proportional": published.proportional,
}
"""By name: a problem and how many candidates to keep, to candidates, best first."""
