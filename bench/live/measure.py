"""Live measurements made of runs: one run, a goodput by bisection, several servers in turns.

Everything comes back as ``bench.run.Run``, the same value that a simulation gives. Knows workloads
and senders; prints nothing, tells its caller how far it is.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from bench.figures import Samples, samples
from bench.goodput import Bisection, Crossing
from bench.live.drive import Pace, drive
from bench.live.sender import Sender, calibrate
from bench.live.turns import Album, Composer, Wording
from bench.run import Row, Run
from bench.workload import Workload

Say = Callable[[str, float], None]
"""What is going on, and which share of it all is done (0 to 1)."""


class Contender(NamedTuple):
    """One server to measure."""

    name: str
    sender: Sender
    num_gpus: float


class Load(msgspec.Struct, frozen=True):
    """What is offered, but for the rate."""

    workload: Workload
    duration_s: float
    warmup_s: float
    seeds: tuple[int, ...]
    timeout_s: float = 120.0
    max_late_s: float = 0.01
    """A run whose client was later than this at its 99th percentile is marked invalid."""

    @property
    def whole_s(self) -> float:
        """A run from its start to the last arrival."""
        return self.duration_s + self.warmup_s


class Bench:
    """Measures contenders under one load; learns each one's tokenizer once."""

    def __init__(self, load: Load, say: Say = lambda _text, _share: None) -> None:
        self._load, self._say = load, say
        self._album = Album()
        self._wordings: dict[str, Wording] = {}

    async def run(
        self, contender: Contender, rate: float | None, seed: int, at: tuple[float, float] = (0, 1)
    ) -> Run:
        """One run. ``at``: its beginning and end as shares of everything that is to be done."""
        load = self._load
        if contender.name not in self._wordings:
            await contender.sender.start()
            self._wordings[contender.name] = await calibrate(contender.sender)
        wording = self._wordings[contender.name]
        arrivals = list(load.workload.arrivals(rate, load.whole_s, seed))
        ended = 0

        def on_end(row: Row) -> None:
            nonlocal ended
            ended += 1
            part = min(row.arrival_s / load.whole_s, 1.0)
            title = f"{contender.name}, {_rate(rate)}, seed {seed}: {ended} of {len(arrivals)}"
            self._say(title, at[0] + part * (at[1] - at[0]))

        pace = Pace(load.whole_s, load.timeout_s)
        driven = await drive(
            contender.sender, Composer(wording, self._album), arrivals, pace, on_end
        )
        late_s = driven.late_p99_s
        is_late = late_s > load.max_late_s
        return Run(
            system=contender.name,
            workload=load.workload.name,
            rate=len(arrivals) / load.whole_s if rate is None else rate,
            seed=seed,
            num_gpus=contender.num_gpus,
            duration_s=load.whole_s,
            rows=driven.rows,
            warmup_s=load.warmup_s,
            late_p99_s=late_s,
            invalid=f"the client was late: {late_s * 1e3:.1f} ms at p99" if is_late else "",
            notes={"text": _about(wording)},
        )

    async def sweep(self, contenders: Sequence[Contender], rates: Sequence[float]) -> list[Run]:
        """Every contender at every rate with every seed, in turns: what drifts, drifts for all."""
        found: list[Run] = []
        total = len(contenders) * len(rates) * len(self._load.seeds)
        for number, seed in enumerate(self._load.seeds):
            for rate in rates:
                turn = number % len(contenders)
                for contender in (*contenders[turn:], *contenders[:turn]):
                    at = (len(found) / total, (len(found) + 1) / total)
                    found.append(await self.run(contender, rate, seed, at))
        return found

    async def goodput(self, contender: Contender, search: Bisection) -> tuple[Crossing, list[Run]]:
        """Bisection on the rate; all seeds at every rate, their requests pooled."""
        found: list[Run] = []
        while (rate := search.next_rate()) is not None:
            pooled = Samples()
            for seed in self._load.seeds:
                run = await self.run(contender, rate, seed)
                found.append(run)
                pooled.join(samples(run))
            search.tell(rate, pooled.attainment)
            self._say(f"{contender.name}, {rate:.3g}/s: {pooled.attainment:.1%}\n", 0.0)
        return search.result(), found


def _rate(rate: float | None) -> str:
    return "at the source's rate" if rate is None else f"{rate:.3g}/s"


def _about(wording: Wording) -> str:
    if not wording.is_measured:
        return "the server counts no tokens: prompts have one word a token"
    return (
        f"lengths are right on average, not exactly: {wording.tokens_per_word:.2f} tokens a word "
        f"and {wording.template_tokens:.0f} around a prompt, as the server counts them"
    )
