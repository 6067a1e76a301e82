"""Policies by name, for ``*/build.py``. The only place where names of policies are written."""

from collections.abc import Callable, Mapping
from typing import TypeVar

import msgspec

from scheduler import batching, deadline, order
from scheduler.batching import boundaries_from_prompt
from scheduler.budgets import settled
from scheduler.costs import Costs
from scheduler.encoding import twsrf
from scheduler.fitted import Fitted
from scheduler.forecast import Forecast, Terms
from scheduler.latency import Latencies
from scheduler.mlfq import Mlfq
from scheduler.modality import Modality
from scheduler.placement import LeastLoaded, Placement, RoundRobin, together
from scheduler.preemption import youngest_first
from scheduler.prefix_aware import PrefixAware
from scheduler.prior import PRIOR
from scheduler.slack import Slack
from scheduler.slices import Slices
from scheduler.slo import SloAware
from triptych.core.config import Config, EngineConfig
from triptych.core.errors import ConfigError
from triptych.core.lifecycle import Role
from triptych.core.metrics import slo_class
from triptych.engine.policies import (
    Batching,
    EncodeOrder,
    Order,
    Policies,
    Split,
    in_order_of_arrival,
)

MadeT = TypeVar("MadeT")

PLACEMENTS: dict[str, Callable[[Forecast, float], Placement]] = {
    "prefix_aware": lambda forecast, _: PrefixAware(forecast.latencies),
    "slo": lambda forecast, _: SloAware(forecast),
    "least_loaded": lambda _, __: LeastLoaded(),
    "one_encoder": lambda _, __: LeastLoaded(together),
    "modality": lambda _, share: Modality(share),
    "round_robin": lambda _, __: RoundRobin(),
}
"""Values of ``router.placement``."""

ORDERS: dict[str, Callable[[Costs], Order]] = {
    "fcfs": lambda _: order.fcfs,
    "longest_prefix": lambda _: order.longest_prefix,
    "mlfq": lambda costs: Mlfq(costs).order,
    "edf": lambda _: deadline.edf_order,
    "slack": lambda costs: Slack(costs).order,
}
"""Values of ``engine.order``."""

BY_PREFIX = frozenset({"longest_prefix", "slack"})
"""Orders that ask what of a prompt is cached."""

BATCHINGS: dict[str, Callable[[Costs], Batching]] = {
    "decode_first": lambda _: batching.decode_first,
    "fcfs": lambda _: batching.fcfs,
    "sarathi": lambda _: batching.sarathi,
    "splitfuse": lambda _: batching.splitfuse,
    "mlfq": lambda costs: Mlfq(costs).batching,
    "edf": lambda _: deadline.edf_batching,
    "slack": lambda costs: Slack(costs).batching,
}
"""Values of ``engine.batching``."""

ENCODE_ORDERS: dict[str, Callable[[Costs], EncodeOrder]] = {
    "fcfs": lambda _: in_order_of_arrival,
    "twsrf": lambda _: twsrf,
    "slack": lambda costs: Slack(costs).encode,
}
"""Values of ``engine.encode_order``."""

SPLITS: dict[str, Callable[[Costs], Split | None]] = {
    "whole": lambda _: None,
    "sis": lambda costs: Slices(costs).split,
}
"""Values of ``engine.split``."""


def policies(config: EngineConfig, costs: Costs = PRIOR) -> Policies:
    """What a language engine decides by, with predictions by ``costs``. Raises ConfigError."""
    return Policies(
        boundaries=boundaries_from_prompt,
        order=_find(ORDERS, "engine.order", config.order)(costs),
        batching=_find(BATCHINGS, "engine.batching", config.batching)(costs),
        preemption=youngest_first,
        matches=config.order in BY_PREFIX,
    )


def encode_order(config: EngineConfig, costs: Costs = PRIOR) -> EncodeOrder:
    """What a vision engine decides by. Raises ConfigError."""
    return _find(ENCODE_ORDERS, "engine.encode_order", config.encode_order)(costs)


def split(config: EngineConfig, costs: Costs = PRIOR) -> Split | None:
    """By what a device is divided between pictures and the language model; None: by itself. Raises
    ConfigError."""
    return _find(SPLITS, "engine.split", config.split)(costs)


class _Card(msgspec.Struct):
    """Of a cost file (``simulator.costs.card``) what policies need."""

    costs: Fitted


def costs_of(data: bytes, key: str = "engine.costs") -> Costs:
    """What the file that ``key`` of the configuration names says. Raises ConfigError."""
    try:
        return msgspec.json.decode(data, type=_Card).costs
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{key}: {error}") from error


def settle(config: Config, role: Role, costs: Costs | None) -> Config:
    """``config`` of an instance of ``role``, with budgets found where they are 0."""
    slo = slo_class(config.engine.slo, 1)
    engine = settled(config.engine, config.cache, role, slo, costs)
    return msgspec.structs.replace(config, engine=engine)


def placement(
    name: str,
    latencies: Latencies,
    forecast: Forecast | None = None,
    picture_share: float = 0.5,
) -> Placement:
    """The placement policy of that name, with a state of its own. ``forecast`` predicts by
    ``latencies``; one of its own is made without it. Raises ConfigError."""
    make = _find(PLACEMENTS, "router.placement", name)
    return make(Forecast(latencies) if forecast is None else forecast, picture_share)


def terms(config: EngineConfig) -> Terms:
    """What of an engine's settings predictions need; of a budget that each instance finds for
    itself, the usual one."""
    usual = Terms()
    return Terms(
        token_budget=config.token_budget or usual.token_budget,
        image_budget_tokens=config.image_budget_tokens or usual.image_budget_tokens,
        max_sequences=config.max_sequences,
        overlap=config.overlap,
    )


def _find(table: Mapping[str, MadeT], key: str, name: str) -> MadeT:
    try:
        return table[name]
    except KeyError:
        raise ConfigError(f"{key}: {name!r} is not known") from None
