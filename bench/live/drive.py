"""The clock of a live run: every request is sent when it is due, whatever became of the others.

The arrival is the moment at which a request was due, so a client or a server that lags cannot hide
behind it (coordinated omission). What the client itself was late by is measured beside it. Knows
senders and composers; no transport and no figure.
"""

import asyncio
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from bench.client import Refused
from bench.live.sender import Answer, Sender
from bench.live.turns import Composer
from bench.run import Row
from bench.workload import Arrival
from triptych.core.metrics import percentile, slo_class

_LEAD_S = 0.25
"""A request is written out so long before it is due: that takes time that it must not wait for."""
_BEAT_S = 0.02


class Pace(msgspec.Struct, frozen=True):
    """How long anything may take."""

    duration_s: float
    """No turn begins behind it, and the run is over when the last request has ended."""
    timeout_s: float = 120.0
    """Of each request, from its arrival."""


class Driven(msgspec.Struct, frozen=True):
    """What came of it."""

    rows: tuple[Row, ...]
    late_s: tuple[float, ...]
    """Of every request: sent so long after it was due."""
    lag_s: tuple[float, ...]
    """How late the client's own event loop woke, sampled throughout: tokens are seen late by as
    much."""

    @property
    def late_p99_s(self) -> float:
        """The worse of the two."""
        return max(percentile(sorted(self.late_s), 0.99), percentile(sorted(self.lag_s), 0.99))


class _Job(msgspec.Struct):
    """One request and what is behind it in its session."""

    arrival: Arrival
    number: int
    turn: int
    next: "_Job | None" = None


async def drive(
    sender: Sender,
    composer: Composer,
    arrivals: Iterable[Arrival],
    pace: Pace,
    on_end: Callable[[Row], None] = lambda _: None,
) -> Driven:
    """Send all of them. ``arrivals`` in order of ``at_s``, those of a session in order of turns."""
    run = _Run(sender, composer, pace, on_end)
    timed = _chained(arrivals)
    for job in timed:
        composer.draw(job.arrival)
    async with asyncio.TaskGroup() as group:
        beat = group.create_task(run.beat())
        async with asyncio.TaskGroup() as requests:
            run.requests = requests
            await run.feed(timed)
        beat.cancel()
    rows = sorted(run.rows, key=lambda row: row.arrival_s)
    return Driven(tuple(rows), tuple(run.late_s), tuple(run.lag_s))


def _chained(arrivals: Iterable[Arrival]) -> list[_Job]:
    """Requests that are due at a time, each with those that wait for its end."""
    timed: list[_Job] = []
    last: dict[str, _Job] = {}
    for number, arrival in enumerate(arrivals):
        before = last.get(arrival.session) if arrival.session else None
        job = _Job(arrival, number, before.turn + 1 if before else 0)
        if arrival.session:
            last[arrival.session] = job
        if arrival.after_s is not None and before is not None:
            before.next = job
        else:
            timed.append(job)
    return timed


class _Run:
    """One run in progress."""

    def __init__(self, sender: Sender, composer: Composer, pace: Pace,
                 on_end: Callable[[Row], None]) -> None:  # fmt: skip
        self._sender, self._composer, self._pace, self._on_end = sender, composer, pace, on_end
        self._loop = asyncio.get_running_loop()
        self._began_s = math.inf
        self._answers: dict[str, dict[int, str]] = {}
        self.requests: asyncio.TaskGroup
        self.rows: list[Row] = []
        self.late_s: list[float] = []
        self.lag_s: list[float] = []

    @property
    def _now_s(self) -> float:
        return self._loop.time() - self._began_s

    async def feed(self, timed: Sequence[_Job]) -> None:
        """Hand over every request a little before it is due."""
        self._began_s = self._loop.time() + _LEAD_S
        for job in timed:
            await asyncio.sleep(max(0.0, job.arrival.at_s - _LEAD_S - self._now_s))
            self.requests.create_task(self._one(job, job.arrival.at_s))

    async def beat(self) -> None:
        """Look how late this loop wakes."""
        while True:
            due_s = self._loop.time() + _BEAT_S
            await asyncio.sleep(_BEAT_S)
            self.lag_s.append(max(0.0, self._loop.time() - due_s))

    async def _one(self, job: _Job, due_s: float) -> None:
        arrival = job.arrival
        answers = self._answers.setdefault(arrival.session, {}) if arrival.session else {}
        ask = self._composer.ask(arrival, answers, self._pace.timeout_s)
        prepared = self._sender.prepare(ask)
        if arrival.session:
            answers[arrival.answer] = ""
        await asyncio.sleep(max(0.0, due_s - self._now_s))
        self.late_s.append(self._now_s - due_s)
        times_s: list[float] = []
        status, code, answer = await self._send(prepared, due_s, times_s)
        if arrival.session:
            answers[arrival.answer] = answer.text
        end_s = self._now_s
        row = _row(job, due_s, end_s, (status, code), _counted(times_s, answer), answer)
        self.rows.append(row)
        self._on_end(row)
        self._follow(job, end_s)

    def _follow(self, job: _Job, end_s: float) -> None:
        if job.next is None:
            return
        due_s = end_s + (job.next.arrival.after_s or 0.0)
        if due_s < self._pace.duration_s:
            self._composer.draw(job.next.arrival)
            self.requests.create_task(self._one(job.next, due_s))

    async def _send(
        self, prepared: Any, due_s: float, times_s: list[float]
    ) -> tuple[str, str, Answer]:
        def on_tokens(count: int) -> None:
            times_s.extend([self._now_s] * count)

        try:
            async with asyncio.timeout_at(self._began_s + due_s + self._pace.timeout_s):
                answer = await self._sender.send(prepared, on_tokens)
        except TimeoutError:
            return "timeout", f"after {self._pace.timeout_s:g} s", Answer()
        except Refused as error:
            return "refused", str(error), Answer()
        except (OSError, EOFError, ValueError) as error:
            return "failed", f"{type(error).__name__}: {error}", Answer()
        if not times_s:
            return "failed", "an answer without tokens", answer
        return "ok", "", answer


def _counted(times_s: list[float], answer: Answer) -> tuple[float, ...]:
    """One time a token. A server that sends no ids may put several tokens into one event; what its
    usage counts beyond the events seen is shared out over them."""
    missing = answer.completion_tokens - len(times_s)
    if missing <= 0 or not times_s:
        return tuple(times_s)
    each, rest = divmod(missing, len(times_s))
    first_with_more = len(times_s) - rest
    return tuple(
        time_s
        for index, time_s in enumerate(times_s)
        for _ in range(1 + each + (index >= first_with_more))
    )


def _row(
    job: _Job, due_s: float, end_s: float, end: tuple[str, str], times_s: tuple[float, ...],
    answer: Answer,
) -> Row:  # fmt: skip
    arrival, (status, code) = job.arrival, end
    slo = slo_class(arrival.slo, len(arrival.images))
    phases = dict(answer.phases)
    if phases:
        phases["decode"] = times_s[-1] - times_s[0] if times_s else 0.0
    return Row(
        id=f"r{job.number}",
        arrival_s=due_s,
        slo=arrival.slo,
        ttft_slo_s=slo.ttft_s,
        tpot_slo_s=slo.tpot_s,
        num_images=len(arrival.images),
        image_tokens=answer.image_tokens or sum(image.num_tokens for image in arrival.images),
        prompt_tokens=answer.prompt_tokens or arrival.num_prompt,
        status=status,
        end_s=end_s,
        code=code[:300],
        token_times_s=times_s,
        cached_tokens=answer.cached_tokens,
        tenant=arrival.tenant,
        session=arrival.session,
        turn=job.turn,
        attempts=answer.attempts,
        route=answer.route,
        phases=phases,
    )
