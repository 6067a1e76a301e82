"""Processors that work is shared out over: who is runnable gets an equal share of what there is.

Processor sharing in virtual time. All work progresses equally fast, so one number, the work that
each runnable job has had since the beginning, says when any of them ends: beginning, ending and
changing one takes O(log n), and what is in flight is stretched exactly when others begin. Knows
seconds of work; not whose they are.
"""

import asyncio
import heapq
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from simulator.world import World

Call = Callable[[], None]


class Processors(Protocol):
    """Cores that jobs share, however they are given out."""

    @property
    def work_s(self) -> float:
        """All work done so far, as of the last change."""
        ...

    def begin(self, work_s: float, call: Call, runner: Any = None) -> Any:
        """``call`` when so many seconds of work are done, by the thread ``runner``; the job."""
        ...

    def at(self, job: Any, work_s: float, call: Call) -> Any:
        """``call`` when the job has had so much work; before its end."""
        ...

    def cancel(self, job: Any) -> None:
        """Take a job off the cores; does nothing if it is over."""
        ...

    def pause(self, job: Any) -> None:
        """A job stands still and leaves its core until ``resume``."""
        ...

    def resume(self, job: Any) -> None:
        """A paused job goes on where it was."""
        ...

    async def run(self, work_s: float, runner: Any = None, on_core: Call | None = None) -> None:
        """Work for so many seconds, however long that takes; ``on_core`` when it begins to."""
        ...


SLACK = 1e-12
"""Relative: work that ends so little later has ended, as sums of floats differ by as much."""


async def done(world: World, begin: Callable[[Call], Any], cancel: Callable[[Any], None]) -> None:
    """Until the job that ``begin`` begins calls; who does not wait for it any more cancels it."""
    over: asyncio.Future[None] = world.create_future()

    def tell() -> None:
        if not over.done():
            over.set_result(None)

    job = begin(tell)
    try:
        await over
    finally:
        cancel(job)


class Work:
    """One job on the cores, or a point on the way of one."""

    __slots__ = ("at", "begin", "call", "entry", "points")

    def __init__(self, begin: float, at: float, call: Call, points: "list[Work] | None") -> None:
        self.begin = begin
        self.at = at
        """Both in work per job."""
        self.call = call
        self.points = points
        """Of a job, those on its way; None of a point."""
        self.entry = 0
        """Its one valid entry in the heap; 0 when it is over, or paused."""


class Cores:
    """``speeds[n - 1]`` is how much work is done a second in all while ``n`` jobs are runnable;
    the last one holds for more. No speeds: every job has a core of its own.

    Two equal cores that do not disturb each other are ``(1.0, 2.0)``.
    """

    def __init__(self, world: World, speeds: Sequence[float] = ()) -> None:
        self._world = world
        self._speeds = tuple(speeds)
        self._heap: list[tuple[float, int, Work]] = []
        self._num_pushed = 0
        self._num_running = 0
        self._had = 0.0
        """Work that a job has had which was runnable since the beginning."""
        self._since_s = world.time()
        """``_had`` is of this moment."""
        self._timer: asyncio.TimerHandle | None = None
        self.work_s = 0.0
        """All work done so far, as of the last change."""

    @property
    def is_shared(self) -> bool:
        """Whether jobs slow each other down."""
        return bool(self._speeds)

    @property
    def num_running(self) -> int:
        """Jobs that are runnable."""
        return self._num_running

    def begin(self, work_s: float, call: Call, runner: Any = None) -> Work:  # noqa: ARG002
        """Run a job of so many seconds on an idle core; ``call`` when it is done. All are equal
        here, whichever thread (``simulator.fair.Runner``) it is."""
        self._advance()
        job = Work(self._had, self._had + work_s, call, [])
        self._num_running += 1
        self._push(job)
        self._aim()
        return job

    def at(self, job: Work, work_s: float, call: Call) -> None:
        """``call`` when a running job has had so much work; before its end."""
        assert job.points is not None, "a job"
        point = Work(job.begin, job.begin + work_s, call, None)
        job.points.append(point)
        self._push(point)
        self._aim()

    def cancel(self, job: Work) -> None:
        """Take a job off the cores; does nothing if it is over."""
        if job.entry:
            self._advance()
            self._drop(job)
            self._aim()

    def pause(self, job: Work) -> None:
        """A running job stands still and leaves its core until ``resume``."""
        self._advance()
        job.points = [point for point in job.points or () if point.entry]
        for each in (*job.points, job):
            self._drop(each)
            each.begin -= self._had  # what it has had, as a negative number, until it goes on
            each.at -= self._had
        self._aim()

    def resume(self, job: Work) -> None:
        """A paused job goes on where it was."""
        self._advance()
        self._num_running += 1
        for each in (*(job.points or ()), job):
            each.begin += self._had
            each.at += self._had
            self._push(each)
        self._aim()

    async def run(self, work_s: float, runner: Any = None, on_core: Call | None = None) -> None:
        """Work for so many seconds, however long that takes; ``on_core`` when it begins to: now."""
        if work_s <= 0.0:
            return
        if on_core is not None:
            on_core()
        if not self._speeds:
            self.work_s += work_s
            await asyncio.sleep(work_s)
            return
        await done(self._world, lambda call: self.begin(work_s, call, runner), self.cancel)

    @property
    def _rate(self) -> float:
        """Work a second of each runnable job."""
        count = self._num_running
        if not self._speeds or not count:
            return 1.0 if count else 0.0
        return self._speeds[min(count, len(self._speeds)) - 1] / count

    def _advance(self) -> None:
        now_s = self._world.time()
        passed = (now_s - self._since_s) * self._rate
        self._had += passed
        self.work_s += passed * self._num_running
        self._since_s = now_s
        if not self._num_running and not self._heap:
            self._had = 0.0  # numbers stay small

    def _push(self, work: Work) -> None:
        self._num_pushed += 1
        work.entry = self._num_pushed
        heapq.heappush(self._heap, (work.at, work.entry, work))

    def _drop(self, work: Work) -> None:
        """What it has in the heap stays there until its time."""
        work.entry = 0
        self._num_running -= work.points is not None

    def _aim(self) -> None:
        """Set the timer to what is due next."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._heap and self._heap[0][2].entry != self._heap[0][1]:
            heapq.heappop(self._heap)
        if self._heap and self._num_running:
            left = max(0.0, self._heap[0][0] - self._had)
            self._timer = self._world.call_at(self._since_s + left / self._rate, self._fire)

    def _fire(self) -> None:
        """All that is due now."""
        self._timer = None
        self._advance()
        due = max(self._had, self._heap[0][0])
        self._had = due
        calls = []
        while self._heap and self._heap[0][0] <= due * (1.0 + SLACK):
            _, entry, work = heapq.heappop(self._heap)
            if work.entry == entry:
                self._drop(work)
                calls.append(work.call)
        self._aim()
        for call in calls:
            call()
