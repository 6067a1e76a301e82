"""However blocks move and wherever they wait, the answer is the same.

Every transport, with and without tiers below the caches, tensor-parallel degrees that differ
between prefill and decode, raw and INT8 on the wire, pictures that come in other orders than they
were sent in. On the oracle the only right tokens; on the demo model the monolith's. Every run has
a covering array of pairs; `make test-matrix` has the full product.
"""

import asyncio
import io
import itertools
import json
import random
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

from tests.checkpoints import DEMO
from tests.flow.drawn import parts
from tests.flow.harness import PUBLIC, Flow, config, flow
from tests.flow.late import Delays, delay
from triptych.core.errors import ConfigError
from triptych.core.hashing import tenant_salt
from triptych.core.ids import ContentHash, TenantId
from triptych.core.request import Picture, Request, Sampling

Parts = Sequence[str | Picture]

Axis = dict[str, tuple[str, ...]]
"""Settings by the name of a value."""


def _known(axis: Axis) -> Axis:
    """The values that this version can be configured to, decided once, before any test."""
    return {name: settings for name, settings in axis.items() if _is_known(settings)}


def _is_known(settings: tuple[str, ...]) -> bool:
    needs = [name for name in ("nixl", "nccl") if f"transfer.transport={name}" in settings]
    packages = {"nixl": ("nixl_cu13", "nixl"), "nccl": ("torch",)}
    if any(not any(map(find_spec, packages[name])) for name in needs):
        return False
    try:
        config(TOPOLOGY, *settings)
    except ConfigError:
        return False
    return True


TOPOLOGY = "E3,P1,D1"
TRANSPORTS = _known(
    {
        "inproc": ("transfer.transport=auto",),
        "shm": ("transfer.transport=shm",),
        "tcp": ("transfer.transport=tcp",),
        "nixl": ("transfer.transport=nixl",),
        "nccl": ("transfer.transport=nccl", "transfer.nccl_backend=gloo"),
    }
)
TIERS = _known(
    {
        "untiered": (),
        "tiered": (
            "cache.kv_blocks=64",
            "cache.embedding_blocks=40",
            "cache.host_bytes=262144",
            "cache.disk_bytes=4194304",
            'cache.disk_path="FOLDER"',
        ),
    }
)
"""With tiers the device's caches are too small for all that is asked."""
SHARDS = _known(
    {
        "tp11": (),
        "tp21": ('cluster.roles={P=["model.tensor_parallel=2"]}',),
        "tp12": ('cluster.roles={D=["model.tensor_parallel=2"]}',),
    }
)
WIRES = _known({"raw": (), "int8": ("transfer.wire=int8",)})
COMMON = ("engine.chunk_tokens=48", "engine.token_budget=96", "engine.image_budget_tokens=1")
TENANTS = [TenantId(name) for name in ("one", "two", "three", "four", "five")]
"""Nothing is shared between tenants: each has the pictures encoded anew, in another order."""
NUM_PROMPTS = 6
TAUGHT = (
    ("red-circle", "What colour is the shape?"),
    ("pair-first", "pair-second", "Do both pictures show the same shape?"),
    ("five-shapes", "Describe the picture."),
    ("pair-second", "pair-first", "What shape is in the second picture?"),
    ("Who are you?",),
    ("digit", "Which digit is this?"),
)
"""Pictures of ``examples/pictures`` and a question."""
END = tuple(json.loads((DEMO / "generation_config.json").read_text())["eos_token_id"])


class Cell(NamedTuple):
    """One way in which everything moves."""

    model: str
    transport: str
    tiers: str
    shards: str
    wire: str

    def settings(self, folder: Path) -> tuple[str, ...]:
        """Of the cluster."""
        ways = (TRANSPORTS[self.transport], TIERS[self.tiers], SHARDS[self.shards])
        settings = (*COMMON, *itertools.chain(*ways), *WIRES[self.wire])
        return tuple(setting.replace("FOLDER", str(folder)) for setting in settings)


KINDS = [("oracle", "raw"), ("demo", "raw"), ("demo", "int8")]
"""Models and wires. The oracle's blocks are digests: they have no INT8."""


def cells() -> Iterator[Cell]:
    """All of them."""
    for kind, *ways in itertools.product(KINDS, TRANSPORTS, TIERS, SHARDS):
        model, wire = kind
        if wire in WIRES:
            yield Cell(model, *ways, wire)


def covering() -> Iterator[Cell]:
    """Few, in which every two values of two axes meet."""
    kinds, tiers = [kind for kind in KINDS if kind[1] in WIRES], list(TIERS)
    for (i, transport), (j, shards) in itertools.product(enumerate(TRANSPORTS), enumerate(SHARDS)):
        model, wire = kinds[(i + j) % len(kinds)]
        yield Cell(model, transport, tiers[(i + j) % len(tiers)], shards, wire)


def params() -> list[object]:
    """Cells; of those of every run, the ones without tiers and shards are quick."""
    chosen = set(covering())

    def marks(cell: Cell) -> list[pytest.MarkDecorator]:
        is_plain = cell[2:4] == ("untiered", "tp11")
        always = [] if is_plain else [pytest.mark.slow]
        return always if cell in chosen else [pytest.mark.matrix, pytest.mark.slow]

    return [pytest.param(cell, id="-".join(cell), marks=marks(cell)) for cell in cells()]


def test_what_every_run_has_meets_in_pairs():
    def pairs(some: Iterator[Cell]) -> set[tuple[tuple[str, str], ...]]:
        named = (zip(Cell._fields, cell, strict=True) for cell in some)
        return {pair for cell in named for pair in itertools.combinations(cell, 2)}

    assert pairs(covering()) == pairs(cells())
    assert set(covering()) < set(cells())


@cache
def prompts(model: str) -> list[Parts]:
    """For the demo model questions that it was taught; for the oracle anything."""
    rng = random.Random("movement")
    if model == "oracle":
        return [parts(rng, number % 4, []) for number in range(NUM_PROMPTS)]
    return [[*map(_shown, names), question] for *names, question in TAUGHT]


def _shown(name: str) -> Picture:
    data = (DEMO.parent / "pictures" / f"{name}.png").read_bytes()
    return Picture(data, "PNG", *Image.open(io.BytesIO(data)).size)


def request(running: Flow, model: str, asked: Parts, tenant: TenantId = PUBLIC) -> Request:
    """The demo model may end its answer; the oracle is sampled."""
    if model == "demo":
        return running.request(asked, eos=END, tenant=tenant, max_tokens=24)
    return running.request(asked, sampling=Sampling(1.0, seed=7), tenant=tenant)


@pytest.fixture(scope="module")
def monolith() -> list[list[int]]:
    """The demo model's answers on one instance."""

    async def ask() -> list[list[int]]:
        async with flow(config("EPD1", *COMMON, model=str(DEMO))) as running:
            return [await running.tokens(request(running, "demo", one)) for one in prompts("demo")]

    return asyncio.run(ask())


@pytest.mark.parametrize("cell", params())
async def test_the_same_tokens(cell: Cell, tmp_path, monolith, monkeypatch):
    delays = Delays(1, 0.02)
    delay(monkeypatch, delays)
    model = str(DEMO) if cell.model == "demo" else cell.model
    orders = []
    async with flow(config(TOPOLOGY, *cell.settings(tmp_path), model=model)) as running:
        for tenant in (*TENANTS, TENANTS[0]):
            delays.order.clear()
            asked = [request(running, cell.model, one, tenant) for one in prompts(cell.model)]
            found = await asyncio.gather(*map(running.tokens, asked))
            if cell.model == "demo":
                assert list(found) == monolith
            else:
                assert list(found) == [await running.oracle_answer(one) for one in asked]
            sent = [key for one in asked for key in keys(running, one)]
            orders.append([sent.index(key) for key in delays.order])
    assert len({tuple(order) for order in orders[: len(TENANTS)]}) > 1, "nothing was late"


def keys(running: Flow, one: Request) -> list[ContentHash]:
    """Of its pictures, in order."""
    salt = tenant_salt(running.core.secret, one.tenant)
    prompt = running.core.service.prompts.expand(one.messages, one.pictures, salt)
    return [item.key for item in prompt.items]
