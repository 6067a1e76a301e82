"""The comparison: systems in turns, several repetitions, the same requests for all.

In turns, because a machine's speed drifts: a repetition of one system lies beside the same
repetition of the others. Knows the order of things and the time that is left.
"""

import asyncio
import time
from collections.abc import Callable, Sequence

import msgspec

from bench import arrivals, workloads
from bench.client import Outcome
from bench.summary import Row, Summary, summarise
from bench.systems import Run, System, SystemFailed

Say = Callable[[str], None]


class Plan(msgspec.Struct, frozen=True):
    """How much is measured."""

    rates: tuple[float, ...]
    """Requests per second, each measured for ``seconds``."""
    seconds: float
    repetitions: int
    seed: int
    warmup: int = 4
    settle_s: float = 0.5
    """Quiet before each rate."""

    def run(self, rate: float, repetition: int) -> Run:
        """The requests of a rate and repetition, equal for every system."""
        seed = hash((self.seed, repetition, round(rate * 1000)))
        count = max(4, round(rate * self.seconds))
        return Run(workloads.draw(count, seed), arrivals.poisson(count, rate, seed))


async def compare(systems: Sequence[System], plan: Plan, say: Say) -> tuple[Row, ...]:
    """Every system at every rate, ``plan.repetitions`` times."""
    found: dict[tuple[str, float], list[Summary]] = {}
    progress = _Progress(len(systems) * plan.repetitions, say)
    for repetition in range(plan.repetitions):
        for system in systems:
            progress.begin(f"{system.name}, repetition {repetition + 1} of {plan.repetitions}")
            try:
                await system.start()
                await _warm_up(system, plan)
                for rate in plan.rates:
                    await asyncio.sleep(plan.settle_s)
                    summary = await _measure(system, plan.run(rate, repetition), rate, progress)
                    found.setdefault((system.name, rate), []).append(summary)
            finally:
                await system.stop()
            progress.end()
    return tuple(
        Row(name, rate, tuple(runs))
        for (name, rate), runs in sorted(found.items(), key=lambda pair: pair[0][1])
    )


async def _warm_up(system: System, plan: Plan) -> None:
    asks = workloads.draw(plan.warmup, plan.seed - 1)
    outcomes = await system.run(Run(asks, (0.0,) * plan.warmup), lambda _: None)
    for outcome in outcomes:
        if outcome.status != "ok":
            raise SystemFailed(f"{system.name} does not answer: {outcome.detail}")


async def _measure(system: System, run: Run, rate: float, progress: "_Progress") -> Summary:
    ended = 0

    def on_end(_: Outcome) -> None:
        nonlocal ended
        ended += 1
        progress.note(f"{rate:g}/s: {ended} of {len(run.asks)}")

    outcomes = await system.run(run, on_end)
    summary = summarise(outcomes)
    progress.line(
        f"    {rate:g}/s: TTFT {summary.ttft_s.p50 * 1e3:.0f} ms, "
        f"TPOT {summary.tpot_s.p50 * 1e3:.1f} ms, {summary.requests_per_s:.2f} requests/s, "
        f"{summary.outcomes} {summary.trouble}"
    )
    return summary


class _Progress:
    """Which turn it is and how long the rest will take, judged by the turns done."""

    def __init__(self, turns: int, say: Say) -> None:
        self._turns, self._done, self._say = turns, 0, say
        self._began_s = time.monotonic()
        self._title = ""

    def begin(self, title: str) -> None:
        self._title = title
        self.line(f"{title}{self._left()}")

    def end(self) -> None:
        self._done += 1

    def note(self, text: str) -> None:
        self._say(f"\r\033[K    {text}")

    def line(self, text: str) -> None:
        self._say(f"\r\033[K{text}\n")

    def _left(self) -> str:
        if not self._done:
            return ""
        each_s = (time.monotonic() - self._began_s) / self._done
        return f" (about {each_s * (self._turns - self._done) / 60:.1f} min left)"
