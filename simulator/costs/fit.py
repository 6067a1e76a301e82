"""``python -m simulator.costs.fit``: writes the files below ``data`` from the public measurements.

Knows where measurements lie in a copy of them and which models are shipped; how to fit is in
``compose``, ``distserve`` and ``power``.
"""

import argparse
import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from simulator.costs import compose, distserve, power
from simulator.costs.card import Card, to_json
from simulator.costs.devices import A100, H200, Device
from simulator.costs.registry import Shipped
from simulator.costs.shapes import SHAPES, Shape
from simulator.costs.sizes import USED, sizes
from simulator.costs.tables import COMMIT, Tables

DATA = Path(__file__).parent / "data"
DEGREES = (1, 2, 4, 8)
MODELS = tuple(name for name in SHAPES if name != "opt-66b")
"""Composed from kernel tables."""
LEAST_CACHE = 0.1
"""Of a device's memory: with less beside the weights a degree is not shipped."""


def main(given: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m simulator.costs.fit", description=__doc__)
    parser.add_argument("--tables", type=Path, help="folder aiconfigurator_perf")
    parser.add_argument("--distserve", type=Path, help="folder with profiler-a100-80g.*.json")
    parser.add_argument("--power", type=Path, help="Splitwise's perf_model.csv")
    parser.add_argument("--out", type=Path, default=DATA)
    asked = parser.parse_args(given)
    if asked.tables:
        for device in (H200, A100):
            tables = Tables(asked.tables, device)
            for model in MODELS:
                write(asked.out, f"{device.name}_{model}", composed(tables, model))
    if asked.distserve:
        for engine in ("distserve", "vllm"):
            for one in published(asked.distserve, engine):
                write(asked.out, f"{one.device}_{one.model}_{engine}", one)
    if asked.power:
        with asked.power.open(newline="") as file:
            write(asked.out, "power", power.fit(power.read(csv.DictReader(file))))
    return 0


def write(folder: Path, stem: str, value: object) -> None:
    """One file."""
    (folder / f"{stem}.json").write_bytes(to_json(value) + b"\n")


def composed(tables: Tables, model: str) -> Shipped:
    """A model on a device at every degree that divides it and leaves room for a cache."""
    shape, device = SHAPES[model], tables.device
    cards = {
        tp: Card(
            source=_source(device, shape, tp),
            sizes=sizes(shape, device, tp),
            costs=compose.compose(tables, shape, tp),
        )
        for tp in DEGREES
        if _fits(shape, device, tp)
    }
    return Shipped(device=device.name, model=model, cards=cards)


def published(folder: Path, engine: str) -> Iterator[Shipped]:
    """DistServe's models."""
    path = folder / f"profiler-a100-80g.{engine}.json"
    source = f"{distserve.COMMIT}/{path.name} (Apache-2.0), A100-80G"
    read = distserve.read(msgspec.json.decode(path.read_bytes(), type=distserve.Published))
    for model, degrees in read.items():
        cards = {
            int(tp): Card(source=source, sizes=sizes(SHAPES[model], A100, int(tp)), costs=each)
            for tp, each in degrees.items()
        }
        yield Shipped(device=A100.name, model=model, cards=cards)


def _fits(shape: Shape, device: Device, tp: int) -> bool:
    language = shape.language
    is_even = not language.heads % tp and (not language.kv_heads % tp or not tp % language.kv_heads)
    room = sizes(shape, device, tp).spare_bytes(vision=True, language=True, used=USED)
    return is_even and room >= LEAST_CACHE * device.memory_bytes * tp


def _source(device: Device, shape: Shape, tp: int) -> str:
    parts = [
        f"sums of BF16 kernels measured by {COMMIT} (Apache-2.0), {device.tables}, "
        f"vLLM {device.tables_version}; shape: {shape.config}; overheads assumed"
    ]
    if device.encoder_like is not None and shape.vision is not None:
        parts.append(
            f"encoder attention not measured: {device.encoder_like.name}'s times the ratio of both "
            "devices' causal attention"
        )
    if device.comm_like is not None and tp > 1:
        parts.append(
            f"all-reduce not measured: {device.comm_like.name}'s at this device's NVLink speed"
        )
    return "; ".join(parts)


if __name__ == "__main__":
    raise SystemExit(main())
