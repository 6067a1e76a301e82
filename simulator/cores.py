"""Processors that work is shared out over: who is runnable gets an equal share of what there is.

Processor sharing in virtual time. All work progresses equally fast, so one number, the work that
each runnable job has had since the beginning, says when any of them ends: beginning, ending and
changing one takes O(log n), and what is in flight is stretched exactly when others begin. Knows
seconds of work; not whose they are.
"""

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Sequence

from simulator.world import World

Call = Callable[[], None]

SLACK = 1e-12
"""Relative: work that ends so little later has ended, as sums of floats differ by as much."""


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

    def begin(self, work_s: float, call: Call) -> Work:
        """Run a job of so many seconds on an idle core; ``call`` when it is done."""
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

    async def run(self, work_s: float) -> None:
        """Work for so many seconds, however long that takes."""
        if work_s <= 0.0:
            return
        if not self._speeds:
            self.work_s += work_s
            await asyncio.sleep(work_s)
            return
        done: asyncio.Future[None] = self._world.create_future()

        def tell() -> None:
            if not done.done():
                done.set_result(None)

        job = self.begin(work_s, tell)
        try:
            await done
        finally:
            self.cancel(job)

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


class Lock:
    """What one interpreter lets one thread at a time have: while a process's event loop works, the
    steps in its other threads stand still. They are thousands of short calls, each of which asks
    for the lock; the loop, once it has it, keeps it until it waits. Implements
    ``simulator.world.Shared`` for the steps."""

    def __init__(self, cores: Cores) -> None:
        self._cores = cores
        self._steps: dict[Work, None] = {}
        self._waiting: list[Call] = []
        self._is_held = False

    def begin(self, work_s: float, call: Call) -> Work:
        """See ``Cores.begin``."""

        def end() -> None:
            del self._steps[step]
            call()

        step = self._cores.begin(work_s, end)
        self._steps[step] = None
        if self._is_held:
            self._cores.pause(step)
        return step

    def at(self, step: Work, work_s: float, call: Call) -> None:
        """See ``Cores.at``."""
        if self._is_held:
            self._cores.resume(step)
        self._cores.at(step, work_s, call)
        if self._is_held:
            self._cores.pause(step)

    def hold(self) -> None:
        """The loop works."""
        self._is_held = True
        for step in self._steps:
            self._cores.pause(step)

    def free(self) -> None:
        """The loop waits."""
        self._is_held = False
        for step in self._steps:
            self._cores.resume(step)
        waiting, self._waiting = self._waiting, []
        for call in waiting:
            call()

    def when_free(self, call: Call) -> None:
        """``call`` as soon as the loop waits."""
        if self._is_held:
            self._waiting.append(call)
        else:
            call()


class Free:
    """Steps that compute without the lock, in one call, and need it to go on behind it. Implements
    ``simulator.world.Shared``."""

    def __init__(self, cores: Cores, lock: Lock) -> None:
        self._cores = cores
        self._lock = lock

    def begin(self, work_s: float, call: Call) -> Work:
        """See ``Cores.begin``."""
        return self._cores.begin(work_s, lambda: self._lock.when_free(call))

    def at(self, step: Work, work_s: float, call: Call) -> None:
        """See ``Cores.at``."""
        self._cores.at(step, work_s, call)


class Thread:
    """Does one thing after the other, in the order of asking: an event loop."""

    def __init__(self, cores: Cores, lock: Lock | None = None) -> None:
        """``lock``: of the interpreter that it shares with steps."""
        self._cores = cores
        self._lock = lock
        self.is_busy = False
        """Whether it does something."""
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def run(self, work_s: float) -> None:
        """Work for so many seconds of a core, behind whoever came before."""
        if work_s <= 0.0 and not self.is_busy:
            return
        if self.is_busy:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._pass_on()
                raise
        self.is_busy = True
        try:
            await self._work(work_s)
        finally:
            self._pass_on()

    async def _work(self, work_s: float) -> None:
        if self._lock is None or work_s <= 0.0:
            await self._cores.run(work_s)
            return
        self._lock.hold()
        try:
            await self._cores.run(work_s)
        finally:
            self._lock.free()

    def _pass_on(self) -> None:
        """The next one's turn; between its being told and its waking nobody slips in."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.is_busy = False
