"""What happened in a simulated run: requests, busy times of instances, changes.

Hears executors, the fabric and the clients, and makes a ``bench.run.Run`` of it. Knows no policy.
"""

from array import array
from collections.abc import Callable, Sequence

from msgspec.structs import replace

from bench.run import Busy, Change, Queue, Row
from triptych.core.clock import Clock
from triptych.core.ids import InstanceId


class Recorder:
    """Everything that is kept of a run. Steps of one kind that follow each other without a pause
    become one ``Busy``."""

    def __init__(self, clock: Clock, *, keeps_busy: bool = True) -> None:
        self._clock = clock
        self.begin_s = 0.0
        """When the run began, on the clock; all that is kept counts from there."""
        self.rows: list[Row] = []
        self.busy: list[Busy] = []
        self.queues: list[Queue] = []
        self.changes: list[Change] = []
        self.busy_s: dict[tuple[str, str], float] = {}
        """Seconds by instance and kind, kept also where single times are not."""
        self._keeps_busy = keeps_busy
        self._open: dict[tuple[str, str], Busy] = {}
        self._times: dict[str, array[float]] = {}
        self.on_row: Callable[[Row], None] = _ignore
        self.on_first: Callable[[str], None] = _ignore
        """Hears of the first token of each request."""

    def drew(self, request: str, index: int, times_s: Sequence[float]) -> None:
        """Output tokens of a request from the ``index``-th on were drawn; a later word counts."""
        times = self._times.get(request)
        if times is None:
            times = self._times[request] = array("d")
            self.on_first(request)
        del times[index:]
        times.extend(times_s)

    def times(self, request: str, count: int) -> tuple[float, ...]:
        """When the first ``count`` output tokens of a request, which is over, were drawn."""
        return tuple(self._times.pop(request, array("d"))[:count])

    def ended(self, row: Row) -> None:
        """A request is over."""
        self.rows.append(row)
        self.on_row(row)

    def worked(
        self, place: str, what: str, times: tuple[float, float], size: tuple[int, int]
    ) -> None:
        """An instance computed, or moved, from one time to another for so many jobs and tokens."""
        start_s, end_s = times
        kind = place, what
        self.busy_s[kind] = self.busy_s.get(kind, 0.0) + end_s - start_s
        if not self._keeps_busy:
            return
        before = self._open.get(kind)
        if before is not None and start_s <= before.end_s + 1e-9:
            jobs, tokens = max(before.num_jobs, size[0]), before.num_tokens + size[1]
            self._open[kind] = Busy(place, what, before.start_s, end_s, jobs, tokens)
            return
        if before is not None:
            self.busy.append(before)
        self._open[kind] = Busy(place, what, start_s, end_s, *size)

    def carried(self, giver: InstanceId, begin_s: float, end_s: float, _num_bytes: int) -> None:
        """The fabric moved a message."""
        self.worked(place_of(giver), "transfer", (begin_s, end_s), (1, 0))

    def changed(self, place: str, what: str, detail: str = "") -> None:
        """Something happened to an instance just now (see ``bench.run.Change``)."""
        self.changes.append(Change(place, self._now_s(), what, detail))

    def queued(self, place: str, waiting: int, running: int) -> None:
        """So much an instance has to do just now."""
        self.queues.append(Queue(place, self._now_s(), waiting, running))

    def _now_s(self) -> float:
        """Into the run; to a nanosecond, so that 2 s after its begin are 2 s."""
        return round(self._clock.now() - self.begin_s, 9)

    def close(self) -> None:
        """Nothing more will happen."""
        self.busy += self._open.values()
        self.busy = [
            replace(one, start_s=one.start_s - self.begin_s, end_s=one.end_s - self.begin_s)
            for one in self.busy
        ]
        self._open.clear()
        self.busy.sort(key=lambda one: (one.start_s, one.instance, one.what))


def place_of(instance: InstanceId) -> str:
    """``decode-0`` of ``decode-0@3``: what a person calls it."""
    return instance.partition("@")[0]


def _ignore(_: object) -> None:
    """Nobody watches."""
