"""Asks a real server a few kinds of requests, one at a time, and reads what each process worked.

Knows a client and the accounts of processes; what follows from the figures is ``around``'s.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from statistics import median

import msgspec

from bench.client import Target, get
from bench.live.http import HttpSender
from bench.live.sender import calibrate
from bench.live.turns import Composer
from bench.systems import TriptychServer
from bench.workload import Arrival, Image, Text
from simulator.profile import processes
from simulator.profile.steps import Say
from simulator.recorder import place_of
from triptych.core.config import Config
from triptych.core.ids import InstanceId

_IDLE_S = 1.0
"""How long is looked at what processes work when nothing is asked."""
_TIMEOUT_S = 60.0


class Kind(msgspec.Struct, frozen=True):
    """Requests of one kind, ``at_once`` of them at a time."""

    name: str
    num_text: int
    num_output: int = 1
    sides: tuple[int, ...] = ()
    """Pixels of its square pictures."""
    at_once: int = 1

    def arrival(self, number: int) -> Arrival:
        """One that no cache knows."""
        seed = number * 64 + 1
        pictures = tuple(Image(seed + n, side, side) for n, side in enumerate(self.sides))
        return Arrival(0.0, (*pictures, Text(seed, self.num_text)), self.num_output)


KINDS = (
    Kind("text", 16),
    Kind("answer", 16, 65),
    Kind("prompt", 400),
    Kind("picture", 16, 1, (112,)),
    Kind("large picture", 16, 1, (448,)),
    Kind("pictures", 16, 1, (112, 112, 112, 112)),
    Kind("answers", 16, 65, (), 8),
)
"""What tells costs apart: more of one thing each."""


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """What one kind took, for each request in the mean; seconds of the processor unless said."""

    kind: Kind
    topology: str
    num_prompt: int
    """Tokens as the server counts them."""
    client_s: float
    router_s: float
    decoders_s: float
    instances_s: dict[str, float]
    """By place."""
    ttft_s: float
    """Median of the wall's clock (what others on the machine add at times is not the server's), as
    ..."""
    tpot_s: float
    """... this; 0 for one token."""
    whole_s: float
    """Until the end of the answer."""


class Server:
    """A server that is running, and its processes."""

    def __init__(self, target: Target, topology: str, instances: dict[str, int]) -> None:
        self.topology = topology
        self.sender = HttpSender(target)
        self._instances = instances
        self._router = processes.parent(next(iter(instances.values())))
        self._decoders = [child for pid in instances.values() for child in processes.children(pid)]

    def accounts(self) -> dict[str, float]:
        """Seconds so far: ``client``, ``router``, ``decoders``, and instances by place."""
        read = processes.cpu_s
        return {
            "client": time.process_time(),
            "router": read(self._router),
            "decoders": sum(map(read, self._decoders)),
            **{place: read(pid) for place, pid in self._instances.items()},
        }


@asynccontextmanager
async def serving(config: Config, topology: str) -> AsyncIterator[Server]:
    """``triptych serve`` of that configuration in plain processes, until left."""
    system = TriptychServer(config.model.path, topology, settings_of(config), _TIMEOUT_S)
    try:
        await system.start()
        _, body = await get(Target("127.0.0.1", system.admin_port, ""), "/instances")
        rows = msgspec.json.decode(body)
        pids = {place_of(InstanceId(row["id"])): row["pid"] for row in rows}
        yield Server(system.target, topology, pids)
    finally:
        await system.stop()


def settings_of(config: Config) -> list[str]:
    """What a server on this machine is to be told to be like ``config``."""
    tree = msgspec.to_builtins(config)
    return [
        *(
            f"{section}.{name}={msgspec.json.encode(value).decode()}"
            for section in ("model", "engine", "cache", "transfer", "limits")
            for name, value in tree[section].items()
        ),
        "cluster.backend=process",
    ]


async def probe(
    server: Server, kinds: Sequence[Kind], count: int, rest_s: float, say: Say
) -> list[Probe]:
    """Ask ``count`` requests of each kind, after a few of each that are not counted.

    ``rest_s``: mean pause between two times of asking. Requests of an open loop find processes that
    have rested, and a core that has rested is slower: its caches are others' by then."""
    await server.sender.start()
    composer = Composer(await calibrate(server.sender))
    number, found = 0, []
    for kind in kinds:
        await _ask(server, composer, kind, range(number, number + 2 * kind.at_once), 0.0)
        number += 2 * kind.at_once
    idle, began_s = server.accounts(), time.monotonic()
    await asyncio.sleep(_IDLE_S)
    passed_s = time.monotonic() - began_s
    idle = {who: (now - idle[who]) / passed_s for who, now in server.accounts().items()}
    idle["client"] = 0.0  # what it did meanwhile was to look
    for kind in kinds:
        whole = -(-count // kind.at_once) * kind.at_once
        numbers = range(number, number + whole)
        found.append(await _measured(server, composer, kind, numbers, (idle, rest_s)))
        say(f"{server.topology}: {kind.name}", len(found) / len(kinds))
        number += whole
    return found


async def _measured(
    server: Server,
    composer: Composer,
    kind: Kind,
    numbers: range,
    rest: tuple[dict[str, float], float],
) -> Probe:
    idle, rest_s = rest
    for number in numbers:  # as a client under load does, ahead of time
        composer.draw(kind.arrival(number))
    before, began_s = server.accounts(), time.monotonic()
    answers = await _ask(server, composer, kind, numbers, rest_s)
    passed_s, after = time.monotonic() - began_s, server.accounts()
    worked = {
        who: max(0.0, after[who] - before[who] - idle[who] * passed_s) / len(numbers)
        for who in after
    }
    return Probe(
        kind=kind,
        topology=server.topology,
        num_prompt=round(median(each.num_prompt for each in answers)),
        client_s=worked.pop("client"),
        router_s=worked.pop("router"),
        decoders_s=worked.pop("decoders"),
        instances_s=worked,
        ttft_s=median(each.times_s[0] for each in answers),
        tpot_s=median(each.tpot_s for each in answers),
        whole_s=median(each.whole_s for each in answers),
    )


class _Answer(msgspec.Struct, frozen=True):
    num_prompt: int
    times_s: tuple[float, ...]
    whole_s: float

    @property
    def tpot_s(self) -> float:
        return (self.times_s[-1] - self.times_s[0]) / max(1, len(self.times_s) - 1)


async def _ask(
    server: Server, composer: Composer, kind: Kind, numbers: range, rest_s: float
) -> list[_Answer]:
    found: list[_Answer] = []
    source = random.Random(kind.name)
    for first in numbers[:: kind.at_once]:
        await asyncio.sleep(source.uniform(0.5, 1.5) * rest_s)
        some = range(first, first + kind.at_once)
        found += await asyncio.gather(*(_one(server, composer, kind, each) for each in some))
    return found


async def _one(server: Server, composer: Composer, kind: Kind, number: int) -> _Answer:
    ask = composer.ask(kind.arrival(number), {}, _TIMEOUT_S)
    prepared = server.sender.prepare(ask)
    times_s: list[float] = []
    began_s = time.monotonic()
    answer = await server.sender.send(
        prepared, lambda count: times_s.extend([time.monotonic() - began_s] * count)
    )
    return _Answer(answer.prompt_tokens, tuple(times_s), time.monotonic() - began_s)
