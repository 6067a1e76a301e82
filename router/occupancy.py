"""What every job of this router waits for: for an earlier stage, for its own, or for nothing.

Follows jobs and their events, O(1) each. A job whose input is still being made counts nowhere: all
jobs of an attempt are sent at once. Knows no request.
"""

from collections.abc import Collection

import msgspec

from scheduler.roles.fleet import Waiting
from triptych.core.clock import Clock
from triptych.core.event import Encoded, Event, Finished, Tokens
from triptych.core.handoff import EncodeJob, Job, LanguageJob, LendJob
from triptych.core.ids import InstanceId, JobId
from triptych.core.lifecycle import Stage


class Standing(msgspec.Struct, frozen=True):
    """One instance's part of what this router is doing."""

    waiting: dict[Stage, Waiting]
    running: int
    """Sequences that decode."""
    context_tokens: int
    """Of them, when they began to."""
    busy_s: float
    """So long it had something to do, since it joined."""


class _Seat:
    """A job; ``stage`` is where it waits (None: for an earlier stage, or for nothing any more)."""

    __slots__ = ("instance", "is_running", "job", "stage", "tokens")

    def __init__(self, instance: InstanceId, job: EncodeJob | LanguageJob) -> None:
        self.instance = instance
        self.job = job
        self.stage: Stage | None = None
        self.is_running = False
        if isinstance(job, EncodeJob):
            self.tokens = job.item.num_tokens
        else:
            self.tokens = len(job.prompt) + len(job.generated)


class _Attempt:
    """The jobs of one attempt of one choice."""

    __slots__ = ("decode", "num_encodes", "num_open", "prefill")

    def __init__(self) -> None:
        self.num_open = self.num_encodes = 0
        self.prefill: _Seat | None = None
        """Also of a job that does both."""
        self.decode: _Seat | None = None


class _Count:
    """Of one instance."""

    def __init__(self) -> None:
        self.jobs = dict.fromkeys(Stage, 0)
        self.tokens = dict.fromkeys(Stage, 0)
        self.running = self.context = self.active = 0
        self.busy_s = self.since_s = 0.0


class Occupancy:
    """Of all instances. Implements ``router.dispatch.Witness``."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seats: dict[JobId, _Seat] = {}
        self._attempts: dict[str, _Attempt] = {}
        self._counts: dict[InstanceId, _Count] = {}

    def of(self, instance: InstanceId) -> Standing:
        """As it is now."""
        count = self._counts.get(instance) or _Count()
        waiting = {
            stage: Waiting(count.jobs[stage], count.tokens[stage])
            for stage in Stage
            if count.jobs[stage]
        }
        busy_s = count.busy_s + (self._clock.now() - count.since_s if count.active else 0.0)
        return Standing(waiting, count.running, count.context, busy_s)

    def keep(self, instances: Collection[InstanceId]) -> None:
        """Forget those that are gone, with all that was in flight there."""
        for name in [name for name in self._counts if name not in instances]:
            if not self._counts[name].active:
                del self._counts[name]

    def sent(self, instance: InstanceId, job: Job) -> None:
        """See ``Witness``."""
        if isinstance(job, LendJob):
            return
        seat = self._seats[job.header.id] = _Seat(instance, job)
        attempt = self._attempts.setdefault(_stem(job.header.id), _Attempt())
        attempt.num_open += 1
        if isinstance(job, EncodeJob):
            attempt.num_encodes += 1
            self._move(seat, Stage.ENCODE)
        elif job.kv is not None:
            attempt.decode = seat
        else:
            attempt.prefill = seat
            self._move(seat, None if attempt.num_encodes else Stage.PREFILL)

    def told(self, event: Event) -> None:
        """See ``Witness``."""
        seat = self._seats.get(event.job)
        if seat is None:
            return
        attempt = self._attempts[_stem(event.job)]
        if isinstance(event, Encoded):
            attempt.num_encodes -= 1
            if not attempt.num_encodes and attempt.prefill is not None:
                self._move(attempt.prefill, Stage.PREFILL)
        elif isinstance(event, Tokens | Finished):
            if seat is attempt.prefill and isinstance(seat.job, LanguageJob):
                attempt.prefill = None
                self._move(seat, None, runs=seat.job.publish is None)
                if attempt.decode is not None:
                    self._move(attempt.decode, Stage.DECODE)
            elif seat is attempt.decode:
                attempt.decode = None
                self._move(seat, None, runs=True)

    def over(self, job: JobId) -> None:
        """See ``Witness``."""
        seat = self._seats.pop(job, None)
        if seat is None:
            return
        self._move(seat, None)
        stem = _stem(job)
        attempt = self._attempts[stem]
        attempt.num_open -= 1
        if attempt.prefill is seat:
            attempt.prefill = None
        if attempt.decode is seat:
            attempt.decode = None
        if not attempt.num_open:
            del self._attempts[stem]

    def _move(self, seat: _Seat, stage: Stage | None, *, runs: bool = False) -> None:
        """A job waits elsewhere, or nowhere, or draws."""
        count = self._counts.setdefault(seat.instance, _Count())
        self._weigh(count, seat, -1)
        seat.stage, seat.is_running = stage, runs
        self._weigh(count, seat, +1)

    def _weigh(self, count: _Count, seat: _Seat, sign: int) -> None:
        if seat.stage is not None:
            count.jobs[seat.stage] += sign
            count.tokens[seat.stage] += sign * seat.tokens
        if seat.is_running:
            count.running += sign
            count.context += sign * seat.tokens
        if seat.stage is None and not seat.is_running:
            return
        now_s, was_active = self._clock.now(), count.active > 0
        count.active += sign
        if was_active and not count.active:
            count.busy_s += now_s - count.since_s
        elif count.active and not was_active:
            count.since_s = now_s


def _stem(job: JobId) -> str:
    """What the jobs of an attempt have in common."""
    return job.rpartition("/")[0]
