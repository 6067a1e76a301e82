"""A plan: which instances to build of N GPUs for a workload and its SLOs.

The closed form proposes, the simulator decides: candidates of ``scheduler.planner`` are simulated
under common random numbers, and the one with the highest goodput over all seeds is the plan. Knows
how the two meet; neither how a queue is estimated nor how a server runs.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from bench.run import Run
from bench.sources.registry import workload
from bench.study import Goodput
from bench.workload import Arrival, Text
from scheduler.planner import PLANNERS
from scheduler.planner.candidate import Candidate
from scheduler.planner.demand import Shape
from scheduler.planner.problem import Footprint, Kind, Link, Problem
from simulator.bayes import Space
from simulator.costs import registry
from simulator.costs.devices import DEVICES, LINKS, LinkRate
from simulator.goodput import search
from simulator.run import Progress
from simulator.scenario import Machines, Scenario, System
from triptych.core.errors import ConfigError

SAMPLE = 200
"""Requests that the closed form looks at."""
SAMPLE_S = 600.0
COARSE = 0.1
"""Tolerance of a goodput that only ranks."""


class Wish(msgspec.Struct, frozen=True):
    """What is planned."""

    costs: str
    """``simulator.costs.registry``, without a tensor-parallel degree."""
    workload: str
    num_gpus: int
    degrees: tuple[int, ...] = (1,)
    """Tensor-parallel degrees to choose from."""
    rate: float = 0.0
    """Requests per second that are wanted; 0: as many as possible."""
    planner: str = "closed_form"
    level: float = 0.9
    keep: int = 4
    """Candidates that are simulated."""
    duration_s: float = 40.0
    warmup_s: float = 5.0
    seeds: tuple[int, ...] = (1, 2, 3)
    tolerance: float = 0.05
    trials: int = 0
    """Of Bayesian search, beside the closed form's candidates; 0: none."""
    settings: tuple[str, ...] = ()
    """``section.key=value`` of every candidate: policies, limits."""
    machines: Machines = Machines()


class Planned(msgspec.Struct, frozen=True):
    """One candidate and what the simulator made of it."""

    system: System
    predicted: float
    """Goodput of the closed form."""
    goodput: Goodput
    why: str

    @property
    def rate(self) -> float:
        """Simulated goodput: the mean over the seeds."""
        return self.goodput.interval.mean


def plan(
    wish: Wish,
    on_run: Callable[[Run], None] = lambda _: None,
    on_progress: Callable[[System], Progress | None] = lambda _: None,
) -> list[Planned]:
    """Candidates, the best first. Raises ConfigError where nothing fits."""
    found = candidates(wish)
    if not found:
        raise ConfigError(f"plan: no layout of {wish.num_gpus} GPUs holds {wish.costs}")
    start = max(0.1, 0.9 * found[0].goodput)
    chosen = [
        (as_system(one, wish.settings), max(0.1, 0.9 * one.goodput), one.why) for one in found
    ]
    if wish.trials:
        chosen += [(system, start, "Bayesian search") for system in _tried(wish, found, start)]
    predicted = {as_system(one, wish.settings).topology: one.goodput for one in found}
    planned = []
    for system, first, why in chosen:
        scenario = _scenario(wish, system, first, wish.seeds)
        goodput = search(scenario, system, wish.tolerance, on_run, on_progress(system))
        planned.append(Planned(system, predicted.get(system.topology, 0.0), goodput, why))
    return sorted(planned, key=lambda one: -one.rate)


def _tried(wish: Wish, found: Sequence[Candidate], start: float) -> list[System]:
    """The best systems of a Bayesian search by one seed's goodput, as many as are kept. Raises
    ConfigError without its library."""
    try:
        import optuna  # optional: the extra ``sim``
    except ImportError:
        raise ConfigError("plan: trials need optuna (pip install 'triptych[sim]')") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = Space(wish.num_gpus, wish.degrees)
    study = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.TPESampler(seed=wish.seeds[0])
    )
    for candidate in found:
        study.enqueue_trial(space.point(candidate))
    systems: dict[bytes, tuple[System, float]] = {}

    def worth(trial: Any) -> float:
        own = space.suggest(trial)
        system = msgspec.structs.replace(own, set=(*own.set, *wish.settings))
        key = msgspec.json.encode(system)
        if key not in systems:
            scenario = _scenario(wish, system, start, wish.seeds[:1])
            systems[key] = system, search(scenario, system, COARSE).crossing.rate
        return systems[key][1]

    study.optimize(worth, n_trials=wish.trials, catch=(ConfigError,))
    best = sorted(systems.values(), key=lambda each: -each[1])
    return [system for system, _ in best[: wish.keep]]


def candidates(wish: Wish) -> list[Candidate]:
    """The closed form's best, best first. Raises ConfigError."""
    if wish.planner not in PLANNERS:
        raise ConfigError(f"plan: planner {wish.planner!r} is none of {', '.join(PLANNERS)}")
    return PLANNERS[wish.planner](problem_of(wish), wish.keep)


def problem_of(wish: Wish) -> Problem:
    """What the closed form is asked. Raises ConfigError."""
    cards = {tp: registry.costs(f"{wish.costs},tp={tp}") for tp in wish.degrees}
    device = DEVICES[wish.costs.partition(":")[0]]
    kinds = tuple(
        Kind(
            f"tp{tp}",
            card.costs,
            tp=tp,
            memory_bytes=float(tp * card.sizes.device_bytes),
            idle_watts=0.2 * tp * device.power_w,
            busy_watts=tp * device.power_w,
        )
        for tp, card in cards.items()
    )
    sizes = cards[min(cards)].sizes
    far = LINKS[wish.machines.far]
    return Problem(
        shapes=shapes(workload(wish.workload).arrivals(None, SAMPLE_S, 1)),
        kinds=kinds,
        num_gpus=wish.num_gpus,
        footprint=Footprint(
            encoder_bytes=float(sizes.vision_bytes),
            language_bytes=float(sizes.language_bytes),
            kv_token_bytes=float(sizes.kv_token_bytes),
            embedding_token_bytes=float(sizes.visual_token_bytes),
        ),
        embedding_link=_link(far, wish.machines.link_share, 1.0),
        kv_link=_link(far, wish.machines.link_share, 0.25),
        rate=wish.rate,
        level=wish.level,
    )


def shapes(arrivals: Iterable[Arrival], count: int = SAMPLE) -> tuple[Shape, ...]:
    """The first requests of a workload as the planner sees them: what a prompt has in common with
    an earlier one, and pictures that were there before, need not be computed."""
    seen_texts: set[tuple[int, ...]] = set()
    seen_images: set[int] = set()
    found = []
    for arrival in arrivals:
        path: tuple[int, ...] = ()
        cached, is_known = 0, True
        pictures = []
        for part in arrival.parts:
            path = (*path, part.seed if isinstance(part, Text) else part.content)
            is_known = is_known and path in seen_texts
            cached += part.num_tokens if is_known else 0
            seen_texts.add(path)
            if not isinstance(part, Text) and not is_known and part.content not in seen_images:
                pictures.append(part.num_tokens)
                seen_images.add(part.content)
        prompt = max(1, arrival.num_prompt)
        cached = min(cached, prompt - 1)
        found.append(
            Shape(tuple(pictures), prompt, max(1, arrival.num_output), cached, arrival.slo)
        )
        if len(found) == count:
            break
    return tuple(found)


def as_system(candidate: Candidate, settings: Sequence[str] = ()) -> System:
    """A candidate as something to simulate, or to serve."""
    own = (
        f"engine.chunk_tokens={candidate.chunk_tokens}",
        f"engine.token_budget={candidate.chunk_tokens}",
        f"engine.max_sequences={candidate.max_decodes}",
        "engine.batching=sarathi" if candidate.policy == "sarathi" else "engine.batching=fcfs",
    )
    tp = {role: degree for role, degree in candidate.tp.items() if degree != 1}
    return System(candidate.topology, candidate.topology, (*own, *settings), tp)


def serve_config(best: Planned, model: str) -> str:
    """A configuration file from which ``triptych serve`` starts the plan."""
    lines = [f"# {best.system.topology}: {best.rate:.3g} requests/s simulated", f"# {best.why}", ""]
    sections: dict[str, list[str]] = {"model": [f'path = "{model}"']}
    for setting in (f"cluster.topology={best.system.topology}", *best.system.set):
        key, _, value = setting.partition("=")
        section, _, name = key.partition(".")
        quoted = value if _is_plain(value) else f'"{value}"'
        line = f"{name} = {quoted}"
        kept = [each for each in sections.get(section, []) if not each.startswith(f"{name} = ")]
        sections[section] = [*kept, line]
    for section, own in sections.items():
        lines += [f"[{section}]", *own, ""]
    if best.system.tp:
        lines.append("[cluster.roles]")
        lines += [f'{role} = ["model.tensor_parallel={tp}"]' for role, tp in best.system.tp.items()]
    return "\n".join(lines).rstrip() + "\n"


def _is_plain(value: str) -> bool:
    return value in ("true", "false") or value.replace(".", "", 1).lstrip("-").isdigit()


def _scenario(wish: Wish, system: System, start: float, seeds: tuple[int, ...]) -> Scenario:
    """Searched from the closed form's word on."""
    return Scenario(
        name=f"plan for {wish.num_gpus} GPUs",
        costs=wish.costs,
        workload=wish.workload,
        rates=(start,),
        duration_s=wish.duration_s,
        warmup_s=wish.warmup_s,
        seeds=seeds,
        systems=(system,),
        machines=wish.machines,
        attainment=wish.level,
    )


def _link(rate: LinkRate, share: float, exposed: float) -> Link:
    return Link(rate.latency_s, rate.bytes_per_s * share, exposed)
