"""A profile of this machine and the configured model: steps, what surrounds them, in one card.

Knows the order of the measurements and how thorough they are; each is a module of its own.
"""

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from cluster.host import InstanceSpec
from cluster.loop import run_loop
from cluster.machine import ThisMachine
from scheduler.fitted import FitError
from simulator.costs.card import Card
from simulator.costs.overheads import Overheads
from simulator.costs.sizes import Sizes
from simulator.profile import processes
from simulator.profile.around import around, crowded
from simulator.profile.probes import (
    KINDS,
    ONE_BY_ONE,
    Asking,
    Crowd,
    Kind,
    Probe,
    probe,
    serving,
)
from simulator.profile.slices import slices
from simulator.profile.speeds import speeds
from simulator.profile.steps import Say, Timed, fitted, has_gpu, is_one_thread, measure
from simulator.profile.tempo import Tempo
from triptych.core.config import Config
from triptych.core.ids import InstanceId
from triptych.core.lifecycle import Stage
from triptych.core.ports import Executors

T = TypeVar("T", Timed, Probe, Crowd)

TOPOLOGIES = ("EPD1", "E1,P1,D1")
"""Of the servers that are asked: what the second needs more, transfers and more jobs need. The
first is asked once more for texts, with ``ONE_BY_ONE``."""


class Effort(msgspec.Struct, frozen=True, kw_only=True):
    """How thorough a profile is."""

    points: int = 5
    """Along each axis of the grid of steps."""
    repetitions: int = 9
    """Of each step."""
    asking: Asking = Asking(num_asked=40, rest_s=0.1, num_crowd=15)
    """Of each server."""
    busy_s: float = 3.0
    """For which several cores are at work."""
    topologies: tuple[str, ...] = TOPOLOGIES


QUICK = Effort(points=2, repetitions=3, asking=Asking(4, 0.0, 1), busy_s=0.5)
"""To see that it works; its figures are rough."""


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """A card and what it was made from."""

    card: Card
    timed: tuple[Timed, ...]
    probes: tuple[Probe, ...]
    crowds: tuple[Crowd, ...]
    around: dict[str, FitError]
    """Errors of ``card.overheads``."""


def profile(config: Config, source: str, effort: Effort, say: Say) -> Profile:
    """Measure everything; ``source`` says in the card what and when. No topology in ``effort``:
    steps only. Raises ConfigError, or what a server fails with."""
    if effort.topologies:
        processes.check()
    found = run_loop(_measured(config, effort, say))
    costs = fitted(found.timed)
    card = Card(source=source, sizes=found.sizes, costs=costs)
    if not found.probes:
        return Profile(card=card, timed=found.timed, probes=(), crowds=(), around={})
    overheads, errors = around(config, card, found.probes, found.known)
    errors |= crowded(config, card, (found.probes, found.crowds), overheads)
    overheads = msgspec.structs.replace(overheads, beat_s=found.beat_s)
    costs = msgspec.structs.replace(costs, errors={**costs.errors, **errors})
    card = msgspec.structs.replace(card, costs=costs, overheads=overheads)
    return Profile(
        card=card, timed=found.timed, probes=found.probes, crowds=found.crowds, around=errors
    )


class _Measured(NamedTuple):
    timed: tuple[Timed, ...]
    sizes: Sizes
    known: Overheads
    """Of the machine and the executors; what surrounds steps comes of the probes."""
    beat_s: float
    probes: tuple[Probe, ...]
    crowds: tuple[Crowd, ...]


async def _measured(config: Config, effort: Effort, say: Say) -> _Measured:
    # What is computed on a device, or by several threads, is as fast as it is.
    tempo = Tempo() if is_one_thread(config) else Tempo(beat=lambda: 1.0)
    steps = _part(say, 0.0, 0.4)
    timed = await measure(config, tempo, effort.points, effort.repetitions, steps)
    cores: tuple[float, ...] = ()
    if effort.topologies and is_one_thread(config):
        cores = await speeds(config, effort.busy_s, _part(say, 0.4, 0.5))
    probes, crowds = await _asked(config, effort, tempo, _part(say, 0.5, 1.0))
    sizes, known = await _sizes(config)
    slice_s, tick_s = slices() if cores else (0.0, Overheads().tick_s)
    known = msgspec.structs.replace(known, speeds=cores, slice_s=slice_s, tick_s=tick_s)
    times = tempo.correction()
    beat_s = tempo.usual_s if is_one_thread(config) else 0.0
    return _Measured(
        tuple(scaled(each, times) for each in timed),
        sizes,
        known,
        beat_s,
        tuple(scaled(each, times) for each in probes),
        tuple(scaled(each, times) for each in crowds),
    )


def scaled(measured: T, times: float) -> T:
    """With all its seconds so many times as long."""
    changed: dict[str, object] = {}
    for name in measured.__struct_fields__:
        value = getattr(measured, name)
        if isinstance(value, float):
            changed[name] = times * value
        elif isinstance(value, dict):
            changed[name] = {who: times * seconds for who, seconds in value.items()}
        elif name == "seconds":
            changed[name] = tuple(times * seconds for seconds in value)
    return msgspec.structs.replace(measured, **changed)


async def _sizes(config: Config) -> tuple[Sizes, Overheads]:
    """Bytes of the model as an instance of all stages has them; of the device, this machine's
    memory, or on a GPU what the configuration takes of it. And how its executors share an
    interpreter and cores."""
    machine = ThisMachine()
    both, known = await _built(machine, config, tuple(Stage))
    encode, _ = await _built(machine, config, (Stage.ENCODE,))
    vision = encode["weights"]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    tokens = config.cache.kv_blocks * config.cache.block_size
    places = config.cache.embedding_blocks * config.cache.embedding_block_size
    found = Sizes(
        num_devices=1,
        device_bytes=sum(both.values()) if has_gpu(config) else memory,
        language_bytes=max(0, both["weights"] - vision),
        vision_bytes=vision,
        kv_token_bytes=both["kv"] // tokens,
        visual_token_bytes=both["embedding"] // places,
    )
    return found, known


def machine_name() -> str:
    """Of this machine and the versions that compute, for ``Card.source``."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "numpy"))
    return f"{_processor()}, Python {platform.python_version()}, {versions}"


async def _built(
    machine: ThisMachine, config: Config, role: tuple[Stage, ...]
) -> tuple[dict[str, int], Overheads]:
    spec = InstanceSpec(InstanceId("profile-0@1"), role, config, b"")
    executors: Executors = await machine.executors(spec, machine.card(config))
    try:
        language, vision = executors.language, executors.vision
        known = Overheads(
            frees_lock=language is not None and language.frees_lock,
            pictures_nice=0 if vision is None else vision.nice,
        )
        return dict(executors.memory_bytes), known
    finally:
        executors.close()


async def _asked(
    config: Config, effort: Effort, tempo: Tempo, say: Say
) -> tuple[list[Probe], list[Crowd]]:
    found: list[Probe] = []
    crowds: list[Crowd] = []
    kinds = tuple(_fitting(config))
    if not kinds:
        return [], []
    texts = tuple(kind for kind in kinds if not kind.sides)
    usual: tuple[str, ...] = ()
    servers = [(topology, usual, kinds) for topology in effort.topologies]
    servers += [(topology, ONE_BY_ONE, texts) for topology in effort.topologies[:1]]
    for number, (topology, settings, asked) in enumerate(servers):
        part = _part(say, number / len(servers), (number + 1) / len(servers))
        part(f"{topology}: starting", 0.0)
        async with serving(config, topology, settings) as server:
            num_crowd = 0 if settings else effort.asking.num_crowd
            asking = effort.asking._replace(num_crowd=num_crowd)
            probes, crowd = await probe(server, asked, asking, tempo, part)
        found += probes
        crowds += [crowd] if crowd is not None else []
    return found, crowds


def _fitting(config: Config) -> list[Kind]:
    """Kinds whose prompts the model takes."""
    most = ThisMachine().card(config).max_positions
    return [kind for kind in KINDS if kind.num_text + kind.num_output + 300 < most]


def _part(say: Say, low: float, high: float) -> Say:
    """``say`` for what is from ``low`` to ``high`` of the whole."""
    return lambda text, share: say(text, low + share * (high - low))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.machine()
