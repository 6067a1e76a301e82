"""Policies by name, for ``*/build.py``. The only place where names of policies are written."""

from collections.abc import Callable

from scheduler.batching import boundaries_from_prompt, decode_first
from scheduler.latency import Latencies
from scheduler.order import fcfs
from scheduler.placement import LeastLoaded, Placement, RoundRobin
from scheduler.preemption import youngest_first
from scheduler.prefix_aware import PrefixAware
from triptych.core.errors import ConfigError
from triptych.engine.policies import Policies

PLACEMENTS: dict[str, Callable[[Latencies], Placement]] = {
    "prefix_aware": PrefixAware,
    "least_loaded": lambda _: LeastLoaded(),
    "round_robin": lambda _: RoundRobin(),
}
"""Values of ``router.placement``."""


def policies() -> Policies:
    """What a language engine decides by."""
    return Policies(
        boundaries=boundaries_from_prompt,
        order=fcfs,
        batching=decode_first,
        preemption=youngest_first,
    )


def placement(name: str, latencies: Latencies) -> Placement:
    """The placement policy of that name, with a state of its own. Raises ConfigError."""
    try:
        return PLACEMENTS[name](latencies)
    except KeyError:
        raise ConfigError(f"router.placement: {name!r} is not known") from None
