"""Costs by name: ``h200:qwen2.5-vl-7b,tp=2``, ``a100:opt-13b/distserve,tp=2,pp=2``, ``file:PATH``.

Knows the files below ``data`` and what of a card a name may change; computes nothing.
"""

from functools import cache
from importlib import resources
from pathlib import Path

import msgspec

from simulator.costs.card import Card, from_file
from simulator.costs.distserve import DistServe
from simulator.costs.power import Power
from triptych.core.errors import ConfigError

OPTIONS = ("tp", "pp", "step_ms", "vision_step_ms")
"""Devices of an instance (1); pipeline stages (1, DistServe only); overheads per step, instead of
the stated assumptions."""

MOST = 1e6
"""Options are below."""


class Shipped(msgspec.Struct, frozen=True, kw_only=True):
    """One file below ``data``: a model on a device, by tensor-parallel degree."""

    device: str
    model: str
    cards: dict[int, Card]


def costs(name: str) -> Card:
    """The card of that name. Raises ConfigError with the known names, or what is wrong."""
    if name.startswith("file:"):
        return from_file(Path(name.removeprefix("file:")))
    model, *options = name.split(",")
    if model not in names():
        raise ConfigError(f"costs: {model!r} is not known; known: {', '.join(names())}, file:PATH")
    chosen = _options(name, options)
    cards, tp = _shipped(model).cards, int(chosen.pop("tp", 1))
    if tp not in cards:
        degrees = ", ".join(map(str, sorted(cards)))
        raise ConfigError(f"costs: {model} has no tp={tp}; known: {degrees}")
    return _changed(name, cards[tp], chosen)


@cache
def names() -> tuple[str, ...]:
    """Shipped models, without options."""
    data = resources.files("simulator.costs") / "data"
    stems = (each.name.removesuffix(".json") for each in data.iterdir())
    return tuple(sorted(_name(stem) for stem in stems if stem != "power"))


@cache
def power() -> Power:
    """Watts by load."""
    return msgspec.json.decode(_file("power").read_bytes(), type=Power)


@cache
def _shipped(name: str) -> Shipped:
    return msgspec.json.decode(_file(_stem(name)).read_bytes(), type=Shipped)


def _file(stem: str) -> resources.abc.Traversable:
    return resources.files("simulator.costs") / "data" / f"{stem}.json"


def _stem(name: str) -> str:
    return name.replace(":", "_").replace("/", "_")


def _name(stem: str) -> str:
    device, model, *source = stem.split("_")
    return f"{device}:{'/'.join([model, *source])}"


def _options(name: str, given: list[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for each in given:
        key, _, value = each.partition("=")
        if key not in OPTIONS or key in found:
            raise ConfigError(f"costs: {name}: {key!r} is not one of {', '.join(OPTIONS)}, once")
        try:
            found[key] = float(value) if key.endswith("_ms") else int(value)
        except ValueError:
            raise ConfigError(f"costs: {name}: {key}={value!r} is not a number") from None
        least = 0 if key.endswith("_ms") else 1
        if not least <= found[key] < MOST:
            raise ConfigError(f"costs: {name}: {key}={value} is not within {least} and {MOST:g}")
    return found


def _changed(name: str, card: Card, chosen: dict[str, float]) -> Card:
    changes: dict[str, float] = {}
    for key, value in chosen.items():
        if (key == "pp") != isinstance(card.costs, DistServe):
            raise ConfigError(f"costs: {name}: {key} does not apply")
        changes[key.replace("_ms", "_s")] = value / 1e3 if key.endswith("_ms") else value
    if "pp" in changes:
        pp = int(changes["pp"])
        many = msgspec.structs.replace(card.sizes, num_devices=card.sizes.num_devices * pp)
        card = msgspec.structs.replace(card, sizes=many)
    return msgspec.structs.replace(card, costs=msgspec.structs.replace(card.costs, **changes))
