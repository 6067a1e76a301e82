"""Triptych and Transformers as contestants: their command lines, and which settings are tried.

Transformers answers over HTTP where an interpreter has what ``transformers serve`` needs; else
plain ``generate`` in a process of its own stands in, which is spared HTTP. Knows no vLLM.
"""

import asyncio
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from bench.client import Outcome, Target
from bench.live.turns import Album, Composer, Wording
from bench.peers.contestant import (
    AT_ONCE,
    GATHERED,
    Asked,
    Entrant,
    OverHttp,
    at_once,
    foreign,
    threads,
    told,
    versions,
)
from bench.peers.process import Process
from bench.peers.sender import UNKNOWN_TO_TRANSFORMERS
from bench.systems import PlainTransformers, Run, SystemFailed, TriptychServer, free_ports
from bench.workload import Arrival
from bench.workloads import Ask
from triptych.core.lifecycle import Stage
from triptych.core.topology import parse

NEEDED_TO_SERVE = (
    *("transformers", "torch", "torchvision", "accelerate"),
    *("fastapi", "uvicorn", "openai"),
)
"""Distributions without which ``transformers serve`` answers no question about a picture."""
GAP = 'cluster.roles={D=["model.decode_gap_s=0.002"]}'
"""Who decodes leaves the cores to those who encode and prefill, for a few of its steps' times."""
_SERVE = """
import torch, torchvision
from transformers import image_processing_backends as backends, image_utils
from transformers.cli.transformers import main
if not hasattr(torch.ops.image, "decode_image"):
    as_tensor = image_utils.load_image_as_tensor
    backends.load_image_as_tensor = lambda url: as_tensor(image_utils.load_image(url))
main()
"""
"""Its command. A torchvision that was built for CUDA has no decoder beside a torch for CPUs; then
Transformers' other way is taken, which decodes with Pillow."""


class Triptych(OverHttp):
    """A topology, its instances as processes."""

    def __init__(self, model: Path, topology: str, settings: Sequence[str]) -> None:
        super().__init__()
        self.name = topology
        words = ("cluster.backend=process", *settings)
        self._server = TriptychServer(str(model), topology, words, 120.0)
        self.told: Mapping[str, object] = {"set": words}

    async def start(self) -> None:
        """Start it."""
        await self._server.start()
        self._target = self._server.target

    async def stop(self) -> None:
        """Stop it."""
        self._target = None
        await self._server.stop()


class TransformersServe(OverHttp):
    """``transformers serve``, which answers one request about a picture at a time."""

    name = "Transformers"
    left_out = UNKNOWN_TO_TRANSFORMERS

    def __init__(self, model: Path, python: str, threads: int) -> None:
        super().__init__()
        self._model = str(model.resolve())
        self._python = python
        self._environment = {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        self.told: Mapping[str, object] = {}
        self._process: Process | None = None

    async def start(self) -> None:
        """Start it; it has loaded the model before it answers."""
        (port,) = free_ports(1)
        options = ("--device", "cpu", "--dtype", "float32", "--attn-implementation", "sdpa")
        place = ("--host", "127.0.0.1", "--port", str(port))
        words = (self._python, "-c", _SERVE, "serve", self._model, *options, *place)
        self.told = {"command": words, "environment": self._environment}
        self._process = Process(self.name, words, {**foreign(), **self._environment})
        await self._process.start()
        target = Target("127.0.0.1", port, self._model)
        await self._process.ready(target, "/health")
        self._target = target

    async def stop(self) -> None:
        """Stop it."""
        self._target = None
        if self._process is not None:
            await self._process.stop()


class InProcess:
    """Plain ``generate``, one request after the other, without HTTP; see ``peer_transformers``."""

    name = "Transformers, in process"

    def __init__(self, model: Path) -> None:
        self._plain = PlainTransformers(str(model), "cpu")
        self.told: Mapping[str, object] = {}

    async def start(self) -> None:
        """Start it; it finds its number of threads by itself."""
        await self._plain.start()
        self.told = self._plain.settings

    async def ask(self, arrivals: Sequence[Arrival], timeout_s: float) -> Asked:
        """See ``Contestant``. Requests cannot be given up one by one, so the time is of all."""
        composer = Composer(Wording(), Album())
        asks = tuple(_plain(composer, arrival) for arrival in arrivals)
        run = Run(asks, (0.0,) * len(asks))
        try:
            async with asyncio.timeout(timeout_s * len(asks)):
                outcomes = await self._plain.run(run, lambda _: None)
        except TimeoutError as error:
            raise SystemFailed(f"{self.name} did not answer in time") from error
        return Asked(closed(outcomes, _clients(arrivals)), {}, 0.0)

    async def stop(self) -> None:
        """Stop it."""
        await self._plain.stop()


def _plain(composer: Composer, arrival: Arrival) -> Ask:
    (turn,) = composer.ask(arrival, {}, 0.0).turns
    pictures = tuple(part for part in turn.parts if isinstance(part, bytes))
    words = " ".join(part for part in turn.parts if isinstance(part, str))
    return Ask(pictures, words, arrival.num_output)


def _clients(arrivals: Sequence[Arrival]) -> int:
    return len({arrival.session for arrival in arrivals})


def closed(outcomes: Sequence[Outcome], clients: int) -> tuple[Outcome, ...]:
    """What serves one request after the other and never rests, seen by that many clients: each
    asks again the moment it has its answer, so a request arrived when the one ``clients`` before
    it ended."""
    return tuple(
        Outcome(
            0.0 if number < clients else outcomes[number - clients].end_s,
            one.token_times_s, one.end_s, one.status, one.detail,
        )
        for number, one in enumerate(outcomes)
    )  # fmt: skip


def triptych(model: Path, topology: str, settings: Sequence[str]) -> Entrant:
    """A topology with the settings given, alone if there are any."""
    if settings:
        return Entrant(topology, {"as given": partial(Triptych, model, topology, settings)})
    two = ("model.threads=2",)
    few = f"{threads(2)}, {told(GATHERED)}"
    gathered = (*two, f"engine.stream_interval={GATHERED}")
    tried = {threads(1): (), threads(2): two, few: gathered}
    if any(role == {Stage.DECODE} for role, _ in parse(topology)):
        tried[f"{few}, decode yields"] = (*gathered, GAP)
    else:
        tried[f"{few}, {at_once(AT_ONCE)}"] = (*gathered, f"engine.max_sequences={AT_ONCE}")
    return Entrant(
        topology, {name: partial(Triptych, model, topology, words) for name, words in tried.items()}
    )


async def transformers(model: Path, python: str) -> Entrant:
    """Over HTTP if ``python`` (empty: ours) has what that needs, else in process."""
    has = await versions(python or sys.executable, *NEEDED_TO_SERVE)
    missing = [name for name in NEEDED_TO_SERVE if name not in has]
    if not missing:
        chosen = python or sys.executable
        settings = {
            threads(count): partial(TransformersServe, model, chosen, count) for count in (1, 2)
        }
        return Entrant(TransformersServe.name, settings, has)
    if python:
        raise SystemFailed(f"transformers: {python} lacks {', '.join(missing)}")
    return Entrant(InProcess.name, {"threads by trial": partial(InProcess, model)}, has)
