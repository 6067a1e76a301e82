"""Asks a real server a few kinds of requests in turns, and reads what each process worked.

Knows a client and the accounts of processes; what follows from the figures is ``around``'s.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from statistics import fmean
from typing import NamedTuple

import msgspec

from bench.client import Target, get
from bench.live.http import HttpSender
from bench.live.sender import calibrate
from bench.live.turns import Composer
from bench.systems import TriptychServer
from bench.workload import Arrival, Image, Text
from simulator.profile import processes
from simulator.profile.steps import Say
from simulator.profile.tempo import Tempo
from simulator.recorder import place_of
from triptych.core.config import Config, override
from triptych.core.ids import InstanceId

_QUIET_S = 0.03
"""Behind an answer, until nothing is done for it any more."""
_IDLE_S = 2.0
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


ONE_BY_ONE = ("engine.steps_ahead=1",)
"""Settings of a server whose every step is planned when the one before is over: what its answers
take more is what lies between two such steps."""


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """What one kind took, for each request in the mean, at the machine's usual tempo; seconds of
    the processor unless said. The longest twentieth is left out: a pause of the host is not the
    server's."""

    kind: Kind
    topology: str
    settings: tuple[str, ...] = ()
    """Of the server, besides the configuration's."""
    num_prompt: int
    """Tokens as the server counts them."""
    client_s: float
    router_s: float
    decoders_s: float
    instances_s: dict[str, float]
    """By place."""
    behind_s: dict[str, float] = {}
    """What of it was done when the first token was there already: ``client``, ``router``,
    ``instances``. Of answers of one token, asked one at a time."""
    ttft_s: float
    """Of the wall's clock, as ..."""
    tpot_s: float
    """... this; 0 for one token."""
    whole_s: float
    """Until the end of the answer."""


class Crowd(msgspec.Struct, frozen=True, kw_only=True):
    """What clients side by side took that ask one request after the other, all in all; at the
    machine's usual tempo."""

    topology: str
    kinds: tuple[Kind, ...]
    """Of the requests; the ``n``-th is asked by client ``n % NUM_CLIENTS``."""
    worked_s: float
    """Seconds of the processor, of all processes."""
    ttft_s: float
    """In the mean."""
    tpot_s: float
    """In the mean of the answers that have one."""

    def arrivals(self, first: int) -> list[Arrival]:
        """The requests, with numbers from ``first`` on."""
        return [
            msgspec.structs.replace(
                kind.arrival(first + n),
                session=f"client-{n % NUM_CLIENTS}",
                after_s=0.0 if n >= NUM_CLIENTS else None,
            )
            for n, kind in enumerate(self.kinds)
        ]


NUM_CLIENTS = 4
"""Of a crowd."""


class Server:
    """A server that is running, and its processes."""

    def __init__(
        self, target: Target, topology: str, settings: tuple[str, ...], instances: dict[str, int]
    ) -> None:
        self.topology, self.settings = topology, settings
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
async def serving(
    config: Config, topology: str, settings: tuple[str, ...] = ()
) -> AsyncIterator[Server]:
    """``triptych serve`` of that configuration in plain processes, until left."""
    told = settings_of(override(config, settings))
    system = TriptychServer(config.model.path, topology, told, _TIMEOUT_S)
    try:
        await system.start()
        _, body = await get(Target("127.0.0.1", system.admin_port, ""), "/instances")
        rows = msgspec.json.decode(body)
        pids = {place_of(InstanceId(row["id"])): row["pid"] for row in rows}
        yield Server(system.target, topology, settings, pids)
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
    server: Server, kinds: Sequence[Kind], effort: "Asking", tempo: Tempo, say: Say
) -> tuple[list[Probe], Crowd | None]:
    """Ask requests of every kind in turns, after a few of each that are not counted: what drifts,
    drifts for all. Then a crowd asks."""
    await server.sender.start()
    asker = _Asker(server, Composer(await calibrate(server.sender)), tempo, effort.rest_s)
    for kind in (*kinds, *kinds):
        await asker.ask(kind)
    began, began_s = server.accounts(), time.monotonic()
    await asyncio.sleep(_IDLE_S)
    passed_s = time.monotonic() - began_s
    asker.idle = {who: (now - began[who]) / passed_s for who, now in server.accounts().items()}
    asker.idle["client"] = 0.0  # what it did meanwhile was to look
    asked: dict[Kind, list[_Asked]] = {kind: [] for kind in kinds}
    for number in range(effort.num_asked):
        for kind in kinds:
            if number % max(1, kind.at_once // 2) == 0:
                asked[kind].append(await asker.ask(kind))
        done = number + 1
        say(f"{server.topology}: request {done} of each kind", done / effort.num_asked)
    found = [_together(kind, server, some) for kind, some in asked.items()]
    alone = [kind for kind in kinds if kind.at_once == 1] * effort.num_crowd
    if not alone:
        return found, None
    crowd = Crowd(
        topology=server.topology, kinds=tuple(alone), worked_s=0.0, ttft_s=0.0, tpot_s=0.0
    )
    return found, await asker.crowd(crowd)


class Asking(NamedTuple):
    """How much is asked."""

    num_asked: int
    """Requests of each kind, and twice as many of those that are asked several at once."""
    rest_s: float
    """Pause between two times of asking, in the mean. Requests of an open loop find processes that
    have rested, and a core that has rested is slower: its caches are others' by then."""
    num_crowd: int
    """Requests of each kind that a crowd asks; 0: there is none."""


class _Moment(NamedTuple):
    """What the accounts say at a time."""

    at_s: float
    worked_s: dict[str, float]


class _Asked(NamedTuple):
    """One time of asking, for each of its requests in the mean."""

    num_prompt: int
    worked_s: dict[str, float]
    """By account."""
    behind_s: dict[str, float]
    ttft_s: float
    tpot_s: float
    whole_s: float


class _Asker:
    """Asks, and reads what it cost."""

    def __init__(self, server: Server, composer: Composer, tempo: Tempo, rest_s: float) -> None:
        self._server, self._composer, self._tempo = server, composer, tempo
        self._rest_s = rest_s
        self._source = random.Random("rest")
        self._number = 0
        self.idle: dict[str, float] = {}
        """Seconds a second that accounts grow by when nothing is asked."""

    async def ask(self, kind: Kind) -> _Asked:
        """``kind.at_once`` requests, with half of a rest before and half behind them."""
        arrivals = [kind.arrival(self._number + each) for each in range(kind.at_once)]
        self._number += kind.at_once
        for arrival in arrivals:  # as a client under load does, ahead of time
            self._composer.draw(arrival)
        rest_s = self._source.uniform(0.25, 0.75) * self._rest_s
        await asyncio.sleep(rest_s)
        slower = self._tempo.now()
        before = self._now()
        at_first: list[_Moment] = []
        tells = kind.at_once == kind.num_output == 1
        answers = await asyncio.gather(
            *(self._one(each, at_first if tells else None) for each in arrivals)
        )
        await asyncio.sleep(max(_QUIET_S, rest_s))
        after, count = self._now(), len(answers)
        worked = {
            who: seconds / slower / count for who, seconds in self._between(before, after).items()
        }
        behind = self._between(at_first[0], after) if at_first else {}
        return _Asked(
            round(fmean(each.num_prompt for each in answers)),
            worked,
            {who: min(seconds / slower, worked[who]) for who, seconds in behind.items()},
            fmean(each.times_s[0] for each in answers) / slower,
            fmean(each.tpot_s for each in answers) / slower,
            fmean(each.whole_s for each in answers) / slower,
        )

    async def crowd(self, crowd: Crowd) -> Crowd:
        """Have it asked, and say what it took."""
        arrivals = crowd.arrivals(self._number)
        self._number += len(arrivals)
        for arrival in arrivals:
            self._composer.draw(arrival)
        answers: list[_Answer] = []

        async def client(number: int) -> None:
            for arrival in arrivals[number::NUM_CLIENTS]:
                answers.append(await self._one(arrival, None))

        before = self._now()
        async with self._tempo.beside() as looks:
            await asyncio.gather(*map(client, range(NUM_CLIENTS)))
        await asyncio.sleep(_QUIET_S)
        worked_s, slower = sum(self._between(before, self._now()).values()), fmean(looks)
        paces = [each.tpot_s for each in answers if len(each.times_s) > 1]
        return msgspec.structs.replace(
            crowd,
            worked_s=worked_s / slower,
            ttft_s=fmean(each.times_s[0] for each in answers) / slower,
            tpot_s=fmean(paces) / slower if paces else 0.0,
        )

    def _now(self) -> _Moment:
        return _Moment(time.monotonic(), self._server.accounts())

    def _between(self, before: _Moment, after: _Moment) -> dict[str, float]:
        """Seconds worked by account, but for what is worked anyway."""
        passed_s = after.at_s - before.at_s
        return {
            who: max(0.0, after.worked_s[who] - worked_s - self.idle.get(who, 0.0) * passed_s)
            for who, worked_s in before.worked_s.items()
        }

    async def _one(self, arrival: Arrival, at_first: list[_Moment] | None) -> "_Answer":
        prepared = self._server.sender.prepare(self._composer.ask(arrival, {}, _TIMEOUT_S))
        times_s: list[float] = []
        began_s = time.monotonic()

        def on_tokens(count: int) -> None:
            times_s.extend([time.monotonic() - began_s] * count)
            if at_first is not None and not at_first:
                at_first.append(self._now())

        answer = await self._server.sender.send(prepared, on_tokens)
        return _Answer(answer.prompt_tokens, tuple(times_s), time.monotonic() - began_s)


class _Answer(NamedTuple):
    num_prompt: int
    times_s: tuple[float, ...]
    whole_s: float

    @property
    def tpot_s(self) -> float:
        return (self.times_s[-1] - self.times_s[0]) / max(1, len(self.times_s) - 1)


def _together(kind: Kind, server: Server, some: Sequence[_Asked]) -> Probe:
    """All times of asking for one kind."""

    def of(figures: str) -> dict[str, float]:
        rows = [getattr(each, figures) for each in some]
        return {who: usual(row[who] for row in rows) for who in rows[0]}

    worked, behind = of("worked_s"), of("behind_s")
    own = {"client", "router", "decoders"}
    told = {"client": behind["client"], "router": behind["router"]} if behind else {}
    if behind:
        told["instances"] = sum(value for who, value in behind.items() if who not in own)
    return Probe(
        kind=kind,
        topology=server.topology,
        settings=server.settings,
        num_prompt=round(fmean(each.num_prompt for each in some)),
        client_s=worked["client"],
        router_s=worked["router"],
        decoders_s=worked["decoders"],
        instances_s={who: value for who, value in worked.items() if who not in own},
        behind_s=told,
        ttft_s=usual(each.ttft_s for each in some),
        tpot_s=usual(each.tpot_s for each in some),
        whole_s=usual(each.whole_s for each in some),
    )


def usual(values: Iterable[float]) -> float:
    """The mean of all but the longest twentieth, where there are twenty."""
    ordered = sorted(values)
    return fmean(ordered[: len(ordered) - len(ordered) // 20])
