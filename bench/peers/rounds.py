"""The order of things: settings by trial, then rounds in which every system has its turn alone.

A system is started for its turn and ended behind it, so that nothing idle takes a core from the one
that is measured. Who begins changes from round to round. Every system is asked the same requests.
"""

import asyncio
import os
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from statistics import geometric_mean

import msgspec

from bench.peers.contestant import Asked, Contestant, Entrant
from bench.sources.registry import workload
from bench.summary import Summary, summarise
from bench.systems import SystemFailed
from bench.workload import Arrival

Say = Callable[[str], None]
_SETTLE_S = 0.5
"""Quiet before each measurement."""
_TRIAL, _WARM_UP = 998, 999
"""Rounds whose requests no measured round has."""


class Plan(msgspec.Struct, frozen=True):
    """How much is measured."""

    concurrency: tuple[int, ...] = (1, 4, 16)
    """Clients of the closed loops."""
    rounds: int = 3
    requests: int = 0
    """Of each loop; 0: six a client, at least 24 and at most 128."""
    tokens: int = 64
    words: int = 16
    side: int = 224
    """Of the one picture, in pixels."""
    seed: int = 7
    timeout_s: float = 300.0

    def arrivals(self, clients: int, round_: int, requests: int | None = None) -> list[Arrival]:
        """One loop's requests, each with a picture of its own; equal for every system."""
        source = workload(
            f"synthetic:closed_loop,images=1,size={self.side}x{self.side},text={self.words},"
            f"output={self.tokens},clients={clients},"
            f"requests={self.requests if requests is None else requests}"
        )
        seed = (self.seed * 1000 + round_) * 1000 + clients
        return list(source.arrivals(None, 1.0, seed))


class Measured(msgspec.Struct, frozen=True):
    """One system in one round at one concurrency."""

    system: str
    round: int
    concurrency: int
    summary: Summary
    late_p99_s: float
    """Of the client, which shares the machine."""
    load: float
    """Of the machine before it: what others do shows here."""
    texts: Mapping[str, str]
    """Answers by question."""


class Settled(msgspec.Struct):
    """With what a system was measured, and why."""

    setting: str
    trials: dict[str, float | str]
    """Scores, or why there is none; see ``score``."""
    versions: dict[str, str]
    told: dict[str, object] = {}


class Found(msgspec.Struct):
    """What came of it all."""

    measured: list[Measured] = []
    settled: dict[str, Settled] = {}
    failed: dict[str, str] = {}
    """Systems that fell out, and what they said."""


class Contest:
    """Settles every entrant's setting, then measures in rounds. A system that fails is left out
    from then on; the others go on."""

    def __init__(self, entrants: Sequence[Entrant], plan: Plan, say: Say) -> None:
        self._entrants, self._plan, self._say = entrants, plan, say
        self._found = Found()

    async def run(self) -> Found:
        """All of it."""
        for entrant in self._entrants:
            await self._guarded(entrant.name, self._settle(entrant))
        began_s = time.monotonic()
        for round_ in range(self._plan.rounds):
            for index in range(len(self._entrants)):
                entrant = self._entrants[(index + round_) % len(self._entrants)]
                if entrant.name in self._found.failed:
                    continue
                done = round_ * len(self._entrants) + index
                left = _left(began_s, done, self._plan.rounds * len(self._entrants))
                self._say(f"round {round_ + 1} of {self._plan.rounds}, {entrant.name}{left}\n")
                await self._guarded(entrant.name, self._turn(entrant, round_))
        return self._found

    async def _guarded(self, name: str, work: Coroutine[None, None, None]) -> None:
        try:
            await work
        except SystemFailed as error:
            self._found.failed[name] = str(error)
            self._say(f"{name} is left out: {brief(error)}\n")

    async def _settle(self, entrant: Entrant) -> None:
        trials: dict[str, float | str] = {}
        scores: dict[str, float] = {}
        for setting in entrant.settings if len(entrant.settings) > 1 else ():
            self._say(f"trial, {entrant.name}, {setting}\n")
            try:
                scores[setting] = await self._trial(entrant.settings[setting])
                trials[setting] = round(scores[setting], 3)
            except SystemFailed as error:
                trials[setting] = brief(error)
                self._say(f"    does not work: {error}\n")
        if trials and not scores:
            raise SystemFailed("no setting works: " + "; ".join(map(str, trials.values())))
        best = (
            max(scores, key=lambda name: scores[name]) if scores else next(iter(entrant.settings))
        )
        self._found.settled[entrant.name] = Settled(best, trials, dict(entrant.versions))

    async def _trial(self, make: Callable[[], Contestant]) -> float:
        contestant = make()
        found = []
        try:
            await contestant.start()
            for clients in self._plan.concurrency:
                await self._warm_up(contestant, clients)
                arrivals = self._plan.arrivals(clients, _TRIAL, 3 * _few(clients))
                asked = await contestant.ask(arrivals, self._plan.timeout_s)
                found.append(_answered(asked))
                self._say(f"    {clients} at a time: {_told(found[-1])}\n")
        finally:
            await contestant.stop()
        return score(found)

    async def _turn(self, entrant: Entrant, round_: int) -> None:
        settled = self._found.settled[entrant.name]
        contestant = entrant.settings[settled.setting]()
        try:
            await contestant.start()
            settled.told = dict(contestant.told)
            for clients in self._plan.concurrency:
                await self._warm_up(contestant, clients)
                await asyncio.sleep(_SETTLE_S)
                load = os.getloadavg()[0]
                asked = await contestant.ask(
                    self._plan.arrivals(clients, round_), self._plan.timeout_s
                )
                summary = summarise(asked.outcomes)
                self._found.measured.append(
                    Measured(
                        entrant.name, round_, clients, summary, asked.late_p99_s, load, asked.texts
                    )
                )
                self._say(f"    {clients} at a time: {_told(summary)}\n")
        finally:
            await contestant.stop()

    async def _warm_up(self, contestant: Contestant, clients: int) -> None:
        arrivals = self._plan.arrivals(clients, _WARM_UP, _few(clients))
        _answered(await contestant.ask(arrivals, self._plan.timeout_s))


def score(found: Sequence[Summary]) -> float:
    """Geometric mean, over all concurrencies, of requests/s and of one by TTFT and by TPOT (p50, in
    seconds): a setting that halves one of them and doubles another is as good as before."""
    return geometric_mean(
        value for each in found for value in (each.requests_per_s, *_speeds(each))
    )


def brief(error: SystemFailed | str) -> str:
    """What failed, and the last line that the server said."""
    first, *rest = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    return f"{first} {rest[-1]}" if rest else first


def _few(clients: int) -> int:
    return max(4, clients)


def _answered(asked: Asked) -> Summary:
    """Raises SystemFailed if not everything was answered as it was asked."""
    summary = summarise(asked.outcomes)
    if set(summary.outcomes) != {"ok"}:
        raise SystemFailed(f"it does not answer: {summary.outcomes}, {summary.trouble}")
    return summary


def _speeds(summary: Summary) -> list[float]:
    """Answers of a single token have no TPOT."""
    return [1 / seconds for seconds in (summary.ttft_s.p50, summary.tpot_s.p50) if seconds > 0]


def _told(summary: Summary) -> str:
    return (
        f"TTFT {summary.ttft_s.p50 * 1e3:.1f} ms, TPOT {summary.tpot_s.p50 * 1e3:.2f} ms, "
        f"{summary.requests_per_s:.2f} requests/s, {summary.outcomes} {summary.trouble}".rstrip()
    )


def _left(began_s: float, done: int, total: int) -> str:
    if not done:
        return ""
    each_s = (time.monotonic() - began_s) / done
    return f" (about {each_s * (total - done) / 60:.1f} min left)"
