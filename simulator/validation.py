"""Is what is simulated what is measured? One server after the other under load, and the very same
requests in virtual time with the costs that a profile found.

Knows how to run both and how far apart they are; prints and draws nothing.
"""

import asyncio
import math
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean
from typing import NamedTuple

import msgspec

from bench.figures import Samples, joined, samples
from bench.live.measure import Bench, Contender, Load
from bench.run import Run
from bench.sources.registry import workload
from simulator.costs.card import Card
from simulator.costs.overheads import Overheads
from simulator.profile.probes import serving
from simulator.profile.rehearsal import as_counted, plan_of
from simulator.profile.tempo import Tempo
from simulator.run import simulate
from triptych.core.config import Config
from triptych.core.errors import ConfigError
from triptych.core.metrics import percentile

Say = Callable[[str, float], None]
"""What is going on, and which share of it all is done (0 to 1)."""

WORKLOADS = {
    "pictures, short answers": "synthetic:servegen,images=1-3,tokens=16-144,text=8-48,output=4-12",
    "text, long answers": "synthetic:servegen,images=0.2,tokens=16-64,text=32-256,output=32-96",
}
"""What the demo model takes: pictures of 112 to 336 pixels a side, 4,096 tokens in all."""
TOPOLOGIES = ("EPD1", "E1,P1,D1", "E1,PD1")
BOUNDS = {"TTFT mean": 0.10, "TTFT p99": 0.20, "TPOT mean": 0.10, "TPOT p99": 0.20}
"""Relative errors within which a figure is met."""
_BURST_RATE = 1000.0


class Extent(msgspec.Struct, frozen=True, kw_only=True):
    """How much is run."""

    topologies: tuple[str, ...] = TOPOLOGIES
    workloads: dict[str, str] = msgspec.field(default_factory=WORKLOADS.copy)
    shares: tuple[float, ...] = (0.3, 0.6, 0.9)
    """Rates, in shares of what the server does at most."""
    repetitions: int = 3
    duration_s: float = 7.0
    warmup_s: float = 1.0
    num_burst: int = 48
    """Requests at once by which the most is found."""


class Live(NamedTuple):
    """One run of a server."""

    run: Run
    share: float
    """Its rate, of the most that the server does."""
    beat_s: float
    """What a beat took meanwhile (``profile.tempo``)."""


class Pair(msgspec.Struct, frozen=True):
    """One run of a server, and the same in virtual time."""

    live: Run
    simulated: Run
    share: float
    beat_s: float = 0.0
    """See ``Live``; 0: not known."""


class Figure(NamedTuple):
    """One figure of one setting."""

    topology: str
    workload: str
    rate: float
    name: str
    live_s: float
    low_s: float
    high_s: float
    """Least and greatest of single repetitions."""
    simulated_s: float

    @property
    def error(self) -> float:
        """Relative; above 0: simulated is slower."""
        return self.simulated_s / self.live_s - 1.0 if self.live_s else math.nan

    @property
    def is_met(self) -> bool:
        """Whether it is within its bound."""
        return abs(self.error) <= BOUNDS[self.name]


def validate(config: Config, card: Card, extent: Extent, say: Say) -> list[Pair]:
    """Run everything: first all servers, repetition by repetition in turns, then all simulations.
    Raises ConfigError if the card says nothing of what surrounds steps."""
    tempo = Tempo(_overheads(card).beat_s)
    lives = asyncio.run(_live(config, extent, tempo, lambda text, share: say(text, 0.8 * share)))
    return simulated(config, card, extent, lives, lambda text, share: say(text, 0.8 + 0.2 * share))


def simulated(
    config: Config, card: Card, extent: Extent, lives: Sequence[Live], say: Say
) -> list[Pair]:
    """Simulate what was measured, perhaps with another card or simulator than at that time. Raises
    ConfigError as ``validate`` does."""
    overheads, found = _overheads(card), []
    for index, (live, share, beat_s) in enumerate(lives):
        say(f"{live.system}: simulating", index / len(lives))
        around = at_tempo(overheads, beat_s)
        run = _simulated(config, card, around, extent, live)
        found.append(Pair(live, run, share, beat_s))
    return found


def _overheads(card: Card) -> Overheads:
    if card.overheads is None:
        raise ConfigError("validate: the card has no overheads; profile without --steps-only")
    return card.overheads


def at_tempo(overheads: Overheads, beat_s: float) -> Overheads:
    """The same machine at a time when a beat took so long: its cores are slower by as much, waits
    are as they were. As it was where one of the two beats is not known."""
    if not beat_s or not overheads.beat_s:
        return overheads
    speeds = tuple(speed * overheads.beat_s / beat_s for speed in overheads.speeds)
    return msgspec.structs.replace(overheads, speeds=speeds, beat_s=beat_s)


def figures(pairs: Iterable[Pair]) -> list[Figure]:
    """All figures, repetitions of a setting pooled."""
    settings: dict[tuple[str, str, float], list[Pair]] = {}
    for pair in pairs:
        key = pair.live.system, pair.live.workload, pair.share
        settings.setdefault(key, []).append(pair)
    found = []
    for (topology, source, _), some in settings.items():
        parts = [samples(pair.live) for pair in some]
        live, modelled = joined(parts), joined(samples(pair.simulated) for pair in some)
        for name in BOUNDS:
            singles = [_value(name, part) for part in parts]
            found.append(
                Figure(
                    topology, source, some[0].live.rate, name,
                    _value(name, live), min(singles), max(singles), _value(name, modelled),
                )
            )  # fmt: skip
    return found


def _value(name: str, of: Samples) -> float:
    what, _, how = name.partition(" ")
    values = sorted(of.ttft_s if what == "TTFT" else of.tpot_s)
    if not values:
        return math.nan
    return sum(values) / len(values) if how == "mean" else percentile(values, 0.99)


async def _live(config: Config, extent: Extent, tempo: Tempo, say: Say) -> list[Live]:
    """Runs of servers."""
    found: list[Live] = []
    most: dict[tuple[str, str], float] = {}
    total = extent.repetitions * len(extent.topologies)
    for repetition in range(extent.repetitions):
        for topology in extent.topologies:
            done = len(found) / total / len(extent.workloads) / len(extent.shares)
            say(f"{topology}: starting, repetition {repetition + 1}", done)
            async with serving(config, topology) as server:
                one = Contender(topology, server.sender, float(topology.count(",") + 1))
                for number, (name, source) in enumerate(extent.workloads.items()):
                    load = Load(workload(source), extent.duration_s, extent.warmup_s, (1,))
                    bench = Bench(load)
                    if (topology, name) not in most:
                        most[topology, name] = await _most(extent, one, source)
                    for index, share in enumerate(extent.shares):
                        say(f"{topology}, {name}, {share:.0%} of its most", done)
                        seed = 1 + index + 10 * number + 100 * repetition
                        rate = round(share * most[topology, name], 2)
                        async with tempo.beside() as looks:
                            run = await bench.run(one, rate, seed)
                        run = msgspec.structs.replace(run, workload=name)
                        found.append(Live(run, share, tempo.usual_s * fmean(looks)))
    return found


async def _most(extent: Extent, one: Contender, source: str) -> float:
    """Requests a second of a burst, once everything of the kind was done before."""
    rate = 0.0
    for seed in (901, 902):
        whole_s = extent.num_burst / _BURST_RATE
        load = Load(workload(source), whole_s, 0.0, (seed,))
        rows = (await Bench(load).run(one, _BURST_RATE, seed)).rows
        rate = len(rows) / max(row.end_s for row in rows)
    return rate


def _simulated(config: Config, card: Card, overheads: Overheads, extent: Extent, live: Run) -> Run:
    """The same arrivals, with as many tokens as the server counted."""
    source = workload(extent.workloads[live.workload])
    arrivals = list(source.arrivals(live.rate, live.duration_s, live.seed))
    counted = {row.id: row.prompt_tokens for row in live.rows}
    asked = [as_counted(arrival, counted[f"r{number}"]) for number, arrival in enumerate(arrivals)]
    plan = plan_of(config, card, live.system, overheads)
    plan = msgspec.structs.replace(
        plan,
        workload=live.workload,
        rate=live.rate,
        seed=live.seed,
        duration_s=live.duration_s,
        warmup_s=live.warmup_s,
    )
    return simulate(plan, asked)
