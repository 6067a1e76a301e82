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

    __slots__ = ("at", "begin", "call", "is_counted", "is_over")

    def __init__(self, begin: float, at: float, call: Call, is_counted: bool) -> None:
        self.begin = begin
        self.at = at
        """Both in work per job."""
        self.call = call
        self.is_counted = is_counted
        self.is_over = False


class Cores:
    """``speeds[n - 1]`` is how much work is done a second in all while ``n`` jobs are runnable;
    the last one holds for more. No speeds: every job has a core of its own.

    Two equal cores that do not disturb each other are ``(1.0, 2.0)``.
    """

    def __init__(self, world: World, speeds: Sequence[float] = ()) -> None:
        self._world = world
        self._speeds = tuple(speeds)
        self._heap: list[tuple[float, int, Work]] = []
        self._num_begun = 0
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
        self._num_running += 1
        return self._push(Work(self._had, self._had + work_s, call, True))

    def at(self, job: Work, work_s: float, call: Call) -> Work:
        """``call`` when a running job has had so much work; before its end."""
        return self._push(Work(job.begin, job.begin + work_s, call, False))

    def retime(self, job: Work, work_s: float) -> Work:
        """A running job takes so much work in all instead; what it takes the place of."""
        self._advance()
        self._num_running += job.is_counted
        self._drop(job)
        at = max(self._had, job.begin + work_s)
        return self._push(Work(job.begin, at, job.call, job.is_counted))

    def cancel(self, job: Work) -> None:
        """Take a job off the cores; does nothing if it is over."""
        if not job.is_over:
            self._advance()
            self._drop(job)
            self._aim()

    def had(self, job: Work) -> float:
        """Seconds of work that a running job has had."""
        self._advance()
        return self._had - job.begin

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

    def _push(self, work: Work) -> Work:
        self._num_begun += 1
        heapq.heappush(self._heap, (work.at, self._num_begun, work))
        self._aim()
        return work

    def _drop(self, work: Work) -> None:
        """Its entry stays in the heap until its time."""
        work.is_over = True
        self._num_running -= work.is_counted

    def _aim(self) -> None:
        """Set the timer to what is due next."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._heap and self._heap[0][2].is_over:
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
            work = heapq.heappop(self._heap)[2]
            if not work.is_over:
                self._drop(work)
                calls.append(work.call)
        self._aim()
        for call in calls:
            call()


class Thread:
    """Does one thing after the other, in the order of asking: an event loop, an interpreter."""

    def __init__(self, cores: Cores) -> None:
        self._cores = cores
        self._is_busy = False
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def run(self, work_s: float) -> None:
        """Work for so many seconds of a core, behind whoever came before."""
        if work_s <= 0.0 and not self._is_busy:
            return
        if self._is_busy:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._pass_on()
                raise
        self._is_busy = True
        try:
            await self._cores.run(work_s)
        finally:
            self._pass_on()

    def _pass_on(self) -> None:
        """The next one's turn; between its being told and its waking nobody slips in."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._is_busy = False
