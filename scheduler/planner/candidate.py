"""A layout with its predicted goodput, and how candidates are ranked.

Asks the closed form; knows no way to enumerate layouts.
"""

import math
from collections.abc import Iterable

import msgspec

from scheduler.planner.bisect import Which, highest
from scheduler.planner.closed_form import Estimate, Prediction, Works
from scheduler.planner.problem import D, Layout, P, Problem, written
from triptych.core.topology import name

PRECISION = 0.005
"""Of a goodput, as a share of the highest rate that the layout could serve."""


class Candidate(msgspec.Struct, frozen=True, eq=False):
    """A plan that somebody may simulate, or start."""

    topology: str
    """``E2,P1,D4``."""
    layout: Layout
    kinds: dict[str, str]
    """Kind by role."""
    tp: dict[str, int]
    """GPUs that share each layer, by role."""
    chunk_tokens: int
    """Token budget of a step."""
    max_decodes: int
    """Sequences that an instance decodes at once."""
    policy: str
    """Order inside an instance that the estimate assumes: ``sarathi`` where prefill and decode
    share steps, else ``fcfs``."""
    goodput: float
    """Requests per second at which attainment is the problem's level; 0 if it never is."""
    goodput_per_gpu: float
    num_gpus: int
    dollars_per_hour: float
    watts: float
    """Mean, at the goodput."""
    score: float
    """What the ranking maximises, in the objective's unit."""
    estimate: Estimate
    """At the goodput; at a very low rate where that is 0."""
    why: str

    @property
    def utilisation(self) -> dict[str, float]:
        """By stage."""
        return self.estimate.utilisation

    @property
    def bottleneck(self) -> str:
        """The stage that limits the goodput."""
        return self.estimate.bottleneck.value


def judged(works: Works, layout: Layout, chunk_tokens: int, most: float = math.inf) -> Candidate:
    """The layout's goodput by bisection over the closed form, not above ``most``."""
    problem = works.problem
    made = [works.of(pool.kind, chunk_tokens) for pool in layout]
    prediction = Prediction(problem, layout, made)
    goodput = sustained(prediction, problem.level, min(prediction.bound, most))
    estimate = prediction.at(goodput if goodput > 0.0 else 0.01 * min(prediction.bound, most))
    num_gpus = sum(pool.num_gpus for pool in layout)
    dollars = sum(pool.count * pool.kind.dollars_per_hour for pool in layout)
    watts = _watts(layout, estimate)
    scores = {
        "goodput": goodput,
        "per_dollar": goodput * 3600.0 / dollars if dollars > 0.0 else 0.0,
        "per_joule": goodput / watts if watts > 0.0 else 0.0,
    }
    shares_steps = any(pool.role >= {P, D} for pool in layout)
    return Candidate(
        topology=written(layout),
        layout=layout,
        kinds={name(pool.role): pool.kind.name for pool in layout},
        tp={name(pool.role): pool.kind.tp for pool in layout},
        chunk_tokens=chunk_tokens,
        max_decodes=prediction.max_decodes,
        policy="sarathi" if shares_steps else "fcfs",
        goodput=goodput,
        goodput_per_gpu=goodput / num_gpus,
        num_gpus=num_gpus,
        dollars_per_hour=dollars,
        watts=watts,
        score=scores[problem.objective],
        estimate=estimate,
        why=_why(problem, estimate, goodput),
    )


def sustained(
    prediction: Prediction, level: float, most: float, precision: float = PRECISION
) -> float:
    """The highest rate up to ``most`` at which attainment is at least ``level``, right to
    ``precision`` of ``most``; 0 if at none."""
    if not 0.0 < most < math.inf:
        return 0.0
    crossing = highest(
        lambda rate: prediction.at(rate).attainment >= level,
        precision * most,
        most,
        precision * most,
        which=Which.FIRST,
    )
    return crossing.value if crossing.is_met else 0.0


def ranked(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Best first; of equals the one with fewer GPUs, then fewer pools, then by name."""
    return sorted(
        candidates, key=lambda one: (-one.score, one.num_gpus, len(one.layout), one.topology)
    )


def _watts(layout: Layout, estimate: Estimate) -> float:
    """Idle power, and the rest in proportion to the time that the pool's busiest stage works.
    Decode instances run without a pause as soon as they have one sequence."""
    watts = 0.0
    for pool in layout:
        busy = max(
            min(1.0, estimate.batch if stage is D else estimate.utilisation[stage.value])
            for stage in pool.role
        )
        kind = pool.kind
        watts += pool.count * (kind.idle_watts + busy * (kind.busy_watts - kind.idle_watts))
    return watts


def _why(problem: Problem, estimate: Estimate, goodput: float) -> str:
    stage = estimate.bottleneck.value
    busy = ", ".join(f"{name} {share:.0%}" for name, share in estimate.utilisation.items())
    if goodput <= 0.0:
        bound = "TTFT" if estimate.ttft <= estimate.tpot else "TPOT"
        share = min(estimate.ttft, estimate.tpot)
        return f"{bound} is met by {share:.0%} even at {estimate.rate:.2g}/s ({stage})"
    return (
        f"{stage} limits: mean TTFT {estimate.ttft_s:.2f} s, TPOT {estimate.tpot_s * 1000:.0f} ms"
        f" at {problem.level:.0%} attainment; busy: {busy}"
    )
