"""Processors that an operating system gives out in slices: who wakes may have to wait for a tick.

The rule is that of Linux since 6.6, EEVDF (Stoica and Abdel-Wahab, 1995): of those that have had no
more than their share the one whose slice would end first. Who wakes takes a core at once by that
rule, as was measured (ADR 26); at ticks whoever was chosen keeps it for a slice. Knows threads and
their weights; not what they work on. All cores share one queue: balancing is perfect, and a move
between cores costs nothing.
"""

import asyncio
import math
from collections.abc import Sequence
from functools import partial

from simulator.cores import Call, Cores, Work, done
from simulator.world import World

SAME_S = 1e-7
"""Deadlines that differ by less are equal: who waits is before who runs then."""
LINGER_S = 1e-6
"""A thread that is done looks for more before it sleeps; what it wakes begins meanwhile."""


class Runner:
    """One thread of the operating system. ``weight``: its share beside others, 1.0 of most."""

    __slots__ = ("core", "deadline", "had", "job", "lag", "lingers", "picked_s", "since_s",
                 "weight")  # fmt: skip

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight
        self.job: Job | None = None
        self.core = 0
        """That it has, or had last."""
        self.had = 0.0
        """Seconds of a core by weight, as of ``since_s``."""
        self.since_s = 0.0
        """Since it runs; of a sleeper, since it sleeps."""
        self.picked_s = 0.0
        """When it was given its core."""
        self.deadline = 0.0
        """Of its slice, comparable with ``had``."""
        self.lag = 0.0
        """Of a sleeper: how much less than the average it had."""
        self.lingers: asyncio.TimerHandle | None = None


class Job:
    """Work of one runner."""

    __slots__ = ("call", "is_over", "is_paused", "on_core", "points", "runner", "work", "work_s")

    def __init__(
        self, runner: Runner, work_s: float, call: Call, on_core: Call | None = None
    ) -> None:
        self.runner = runner
        self.work_s = work_s
        self.call = call
        self.on_core = on_core
        """When it begins."""
        self.points: list[tuple[float, Call]] = []
        """On the way, of one that has not begun."""
        self.work: Work | None = None
        self.is_over = False
        self.is_paused = False


class FairCores:
    """``speeds`` as of ``Cores``, one number for each core. ``slice_s`` is what a thread may have
    before another one is due, ``tick_s`` how often each core is looked at, one after the other. Who
    is called may begin, pause and cancel what it likes."""

    def __init__(
        self, world: World, speeds: Sequence[float], slice_s: float, tick_s: float
    ) -> None:
        self._world = world
        self._cores = Cores(world, speeds)
        self._slice_s = slice_s
        self._tick_s = tick_s
        self._running: list[Runner | None] = [None] * len(speeds)
        """Who has each core."""
        self._queue: list[Runner] = []
        self._virtual = 0.0
        """What those that run or would have had by weight, in the mean, when there last were
        some."""
        self._tick: asyncio.TimerHandle | None = None

    @property
    def work_s(self) -> float:
        """All work done so far, as of the last change."""
        return self._cores.work_s

    @property
    def num_running(self) -> int:
        """Threads that run or would."""
        return len(self._queue) + sum(each is not None for each in self._running)

    def begin(
        self,
        work_s: float,
        call: Call,
        runner: Runner | None = None,
        on_core: Call | None = None,
    ) -> Job:
        """``runner``, or a thread of its own, has so many seconds of work on a core that nobody
        slows down; ``on_core`` when it begins, ``call`` when it is done."""
        if runner is None or runner.job is not None:
            runner = Runner(1.0 if runner is None else runner.weight)
        job = runner.job = Job(runner, work_s, call, on_core)
        if runner.lingers is not None:
            runner.lingers.cancel()
            runner.lingers = None
            self._go_on(job)
        else:
            self._wake(runner)
        return job

    def at(self, job: Job, work_s: float, call: Call) -> None:
        """``call`` when a job has had so much work; before its end."""
        if job.work is None:
            job.points.append((work_s, call))
            return
        is_running = job.work.entry != 0
        if not is_running:
            self._cores.resume(job.work)
        self._mark(job.work, work_s, call)
        if not is_running:
            self._cores.pause(job.work)

    def cancel(self, job: Job) -> None:
        """Take a job off; does nothing if it is over."""
        if job.is_over:
            return
        job.is_over = True
        if job.work is not None:
            self._cores.cancel(job.work)
        job.runner.job = None
        if not job.is_paused:
            self._leave(job.runner)

    def pause(self, job: Job) -> None:
        """The job's thread sleeps until ``resume``."""
        if job.is_over or job.is_paused:
            return
        job.is_paused = True
        if job.work is not None and job.work.entry:
            self._cores.pause(job.work)
        self._leave(job.runner)

    def resume(self, job: Job) -> None:
        """It wakes."""
        if job.is_paused and not job.is_over:
            job.is_paused = False
            self._wake(job.runner)

    async def run(
        self, work_s: float, runner: Runner | None = None, on_core: Call | None = None
    ) -> None:
        """Work for so many seconds, however long that takes; ``on_core`` when it begins."""
        if work_s <= 0.0:
            return
        await done(self._world, lambda call: self.begin(work_s, call, runner, on_core), self.cancel)

    def _go_on(self, job: Job) -> None:
        """The thread of the job is on a core."""
        if job.work is not None:
            self._cores.resume(job.work)
            return
        if job.on_core is not None:
            job.on_core()
        job.work = self._cores.begin(job.work_s, partial(self._ended, job))
        for work_s, call in job.points:
            self._mark(job.work, work_s, call)

    def _mark(self, work: Work, work_s: float, call: Call) -> None:
        def told() -> None:
            self._world.call_soon(call)  # who may change who runs, once all that is due is told

        self._cores.at(work, work_s, told)

    def _ended(self, job: Job) -> None:
        runner = job.runner
        job.is_over, runner.job = True, None
        runner.lingers = self._world.call_later(LINGER_S, self._lingered, runner)
        self._world.call_soon(job.call)

    def _lingered(self, runner: Runner) -> None:
        """Nothing more came."""
        runner.lingers = None
        self._leave(runner)

    def _wake(self, runner: Runner) -> None:
        """A thread wants a core: one that is idle, or somebody else's, or it waits."""
        self._account()
        self._enter(runner)
        self._queue.append(runner)
        self._give(self._next_to(runner.core))
        self._await_tick()

    def _enter(self, runner: Runner) -> None:
        """Among those that run or would, where it was before it slept: as far behind the average.
        Who had more than its share has waited for that meanwhile."""
        lag, others = runner.lag, self._present()
        if lag < 0.0:
            lag = min(0.0, lag + self._world.time() - runner.since_s)
        if others:  # it draws the average towards itself
            lag *= 1.0 + runner.weight / sum(each.weight for each in others)
        runner.had = self._average() - lag
        runner.deadline = runner.had + self._slice_s / runner.weight

    def _next_to(self, core: int) -> int:
        """The core to look at for who wakes: an idle one, that it had, or whose thread can wait."""
        running = self._running
        if running[core] is None:
            return core
        if None in running:
            return running.index(None)
        deadlines = [each.deadline for each in running if each is not None]
        return deadlines.index(max(deadlines))

    def _give(self, core: int) -> None:
        """A core to who is to have it now."""
        before = self._running[core]
        best = self._best(core)
        if best is None or best is before:
            return
        if before is not None and before.job is None:
            self._sleep(before)
        self._queue.remove(best)
        if before is not None and before.job is not None:
            assert before.job.work is not None, "it ran"
            self._cores.pause(before.job.work)
            self._queue.append(before)
        self._running[core], best.core = best, core
        best.since_s = best.picked_s = self._world.time()
        assert best.job is not None, "it wants a core"
        self._go_on(best.job)

    def _leave(self, runner: Runner) -> None:
        """A thread sleeps, and its core goes to somebody else."""
        self._account()
        if runner in self._queue:
            self._sleep(runner)
            self._queue.remove(runner)
            return
        self._sleep(runner)
        self._running[runner.core] = None
        self._give(runner.core)

    def _sleep(self, runner: Runner) -> None:
        if runner.lingers is not None:
            runner.lingers.cancel()
            runner.lingers = None
        most = max(2 * self._slice_s, self._tick_s) / runner.weight
        runner.lag = max(-most, min(most, self._average() - runner.had))
        runner.since_s = self._world.time()

    def _await_tick(self) -> None:
        """Cores are looked at in turns, each once a tick."""
        if self._tick is None and self._queue:
            each_s = self._tick_s / len(self._running)
            number = math.floor(self._world.time() / each_s * (1.0 + 1e-12)) + 1
            self._tick = self._world.call_at(number * each_s, self._on_tick, number)

    def _on_tick(self, number: int) -> None:
        self._tick = None
        core = number % len(self._running)
        running = self._running[core]
        if running is None or self._world.time() - running.picked_s >= self._slice_s:
            self._account()
            self._give(core)
        self._await_tick()

    def _account(self) -> None:
        """What those that run have had by now. A slice that is used up is followed by another one
        when somebody looks: at ticks, and now."""
        now_s, count = self._world.time(), len(self._running)
        for core, runner in enumerate(self._running):
            if runner is None:
                continue
            each_s, new = self._tick_s / count, self._slice_s / runner.weight
            number = math.floor(now_s / each_s)
            tick_s = (number - (number - core) % count) * each_s
            if tick_s > runner.since_s:
                then = runner.had + (tick_s - runner.since_s) / runner.weight
                if then >= runner.deadline:
                    runner.deadline = then + new
            runner.had += (now_s - runner.since_s) / runner.weight
            runner.since_s = now_s
            if runner.had >= runner.deadline:
                runner.deadline = runner.had + new

    def _present(self) -> list[Runner]:
        return [*self._queue, *(each for each in self._running if each is not None)]

    def _average(self) -> float:
        some = self._present()
        if some:
            weight = sum(each.weight for each in some)
            self._virtual = sum(each.weight * each.had for each in some) / weight
        return self._virtual

    def _best(self, core: int) -> Runner | None:
        """Who is to have a core, of those that had no more than the average."""
        some, running = list(self._queue), self._running[core]
        if running is not None and running.job is not None:
            some.append(running)
        average = self._average()
        entitled = [each for each in some if each.had <= average + 1e-12] or some
        return min(entitled, key=lambda each: round(each.deadline / SAME_S), default=None)
