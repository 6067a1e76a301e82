"""A scenario as a planner's problem, and the layouts that planners propose for it."""

from collections.abc import Callable
from itertools import islice

from bench.workload import Arrival
from scheduler.planner.candidate import Candidate
from scheduler.planner.demand import Shape
from scheduler.planner.problem import Footprint, Kind, Link, Problem
from scheduler.planner.published import epdserve, proportional
from scheduler.planner.search import closed_form
from simulator.costs.card import Card
from simulator.costs.devices import LinkRate
from simulator.costs.registry import costs
from simulator.costs.sizes import USED
from simulator.reproduce.lab import Lab
from simulator.scenario import Scenario
from triptych.core.request import Slo

SAMPLE = 200
"""Requests that a planner sees."""

PLANNERS: dict[str, Callable[[Problem], list[Candidate]]] = {
    "proportional": proportional,
    "epdserve": lambda problem: epdserve(problem, 1),
    "closed_form": lambda problem: closed_form(problem, 1),
}
"""TriInfer's three families by its split; the best that others find."""


def proposed(lab: Lab, case: str, planner: str) -> list[str]:
    """Topologies that a planner would have replayed."""
    found = PLANNERS[planner](problem(lab.scenario(case), lab.target.num_gpus))
    return [candidate.topology for candidate in found]


def problem(scenario: Scenario, num_gpus: int) -> Problem:
    """What a planner is told of a scenario: its first requests, its card, its wires."""
    card = costs(scenario.costs)
    arrivals = scenario.source.arrivals(scenario.rates[0], scenario.duration_s, scenario.seeds[0])
    link = scenario.hardware(scenario.systems[0]).near
    return Problem(
        shapes=tuple(map(_shape, islice(arrivals, SAMPLE))),
        kinds=(_kind(card),),
        num_gpus=num_gpus,
        footprint=_footprint(card),
        embedding_link=_link(link),
        kv_link=_link(link),
        level=scenario.attainment,
        slo_of=_slo_of(scenario),
    )


def _shape(arrival: Arrival) -> Shape:
    pictures = tuple(image.num_tokens for image in arrival.images)
    return Shape(pictures, arrival.num_prompt, arrival.num_output, slo=arrival.slo)


def _kind(card: Card) -> Kind:
    sizes = card.sizes
    return Kind("gpu", card.costs, memory_bytes=USED * sizes.device_bytes * sizes.num_devices)


def _footprint(card: Card) -> Footprint:
    sizes = card.sizes
    return Footprint(
        encoder_bytes=sizes.vision_bytes,
        language_bytes=sizes.language_bytes,
        kv_token_bytes=sizes.kv_token_bytes,
        embedding_token_bytes=sizes.visual_token_bytes,
        kv_share=1.0,
    )


def _link(link: LinkRate) -> Link:
    return Link(link.latency_s, link.bytes_per_s)


def _slo_of(scenario: Scenario) -> Callable[[Shape], Slo] | None:
    slo = scenario.slo
    return None if slo is None else lambda _: Slo("scenario", slo.ttft_s, slo.tpot_s)
