"""Policies by name, for ``*/build.py``. The only place where names of policies are written."""

from collections.abc import Callable

from scheduler.batching import boundaries_from_prompt, decode_first
from scheduler.latency import Latencies
from scheduler.order import fcfs, longest_prefix
from scheduler.placement import LeastLoaded, Placement, RoundRobin
from scheduler.preemption import youngest_first
from scheduler.prefix_aware import PrefixAware
from triptych.core.config import EngineConfig
from triptych.core.errors import ConfigError
from triptych.engine.policies import Order, Policies

PLACEMENTS: dict[str, Callable[[Latencies], Placement]] = {
    "prefix_aware": PrefixAware,
    "least_loaded": lambda _: LeastLoaded(),
    "round_robin": lambda _: RoundRobin(),
}
"""Values of ``router.placement``."""


ORDERS: dict[str, Order] = {"fcfs": fcfs, "longest_prefix": longest_prefix}
"""Values of ``engine.order``."""


def policies(config: EngineConfig) -> Policies:
    """What a language engine decides by. Raises ConfigError."""
    if config.order not in ORDERS:
        raise ConfigError(f"engine.order: {config.order!r} is not known")
    return Policies(
        boundaries=boundaries_from_prompt,
        order=ORDERS[config.order],
        batching=decode_first,
        preemption=youngest_first,
        matches=config.order == "longest_prefix",
    )


def placement(name: str, latencies: Latencies) -> Placement:
    """The placement policy of that name, with a state of its own. Raises ConfigError."""
    try:
        return PLACEMENTS[name](latencies)
    except KeyError:
        raise ConfigError(f"router.placement: {name!r} is not known") from None
