"""The driver of an engine: plan, execute in the one thread that computes, apply, tell.

The only module of this floor that knows asyncio. Does not know what is planned or computed.
"""

import asyncio
import logging
import math
import os
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, Generic, TypeVar

from triptych.core.clock import Clock
from triptych.core.errors import InstanceLost, InvariantBroken
from triptych.core.plan import Drawn
from triptych.core.ports import OnDrawn
from triptych.engine.outcome import Outcome
from triptych.engine.step import Engine, Executor, Step

PlanT = TypeVar("PlanT")
ResultT = TypeVar("ResultT")

Sink = Callable[[Sequence[Outcome]], None]
"""Hears of outcomes, in order, on the loop's thread. May call the engine; must not block."""

SHORTEST_NAP_S = 0.001

_log = logging.getLogger(__name__)


class Pump(Generic[PlanT, ResultT]):
    """Runs one engine on one executor. All methods belong to the thread of one event loop.

    The engine is touched on the loop only, the executor in one thread of its own, so neither needs
    a lock. Whoever changes the engine from outside (submit, arrived, cancel, release ...) calls
    ``wake`` afterwards.
    """

    def __init__(
        self,
        engine: Engine[PlanT, ResultT],
        executor: Executor[PlanT, ResultT],
        clock: Clock,
        sink: Sink,
        begin: Callable[[PlanT, OnDrawn], Callable[[], ResultT]] | None = None,
        interrupt: Callable[[], None] | None = None,
    ) -> None:
        """``begin`` is called on the loop right before a step and gives the call that computes it;
        ``executor.execute(plan)`` without it. That call may tell of steps that are over while it
        computes the next. ``interrupt`` ends a run of steps early."""
        self._interrupt = interrupt
        self._engine = engine
        self._clock = clock
        self._sink = sink
        self._begin = begin or (lambda plan, _told: partial(executor.execute, plan))
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="executor")
        self._woken = asyncio.Event()
        self._changed = asyncio.Event()
        self._is_stopping = False
        self._is_executing = False
        self._is_running_on = False
        """Whether what is executed is a run of steps."""
        self._expiry: asyncio.TimerHandle | None = None
        self._fault: Exception | None = None
        """What a step that was told in a run met."""
        self._is_flushing = False
        self._running: asyncio.Task[None] | None = None

    def be_nice(self, more: int) -> None:
        """Let the thread that executes yield to others: so much is added to its niceness, which on
        Linux each thread has for itself; elsewhere nothing happens."""
        if more and sys.platform == "linux":
            self._thread.submit(_be_nice, more)

    def wake(self) -> None:
        """The engine was changed: look again. During a step, what can be told at once is told."""
        self._woken.set()
        if self._is_running_on and self._interrupt is not None:
            if self._engine.has_news():
                self._interrupt()
            else:
                self._expire()  # a deadline may have come that is nearer than all others
        if self._is_executing and not self._is_flushing:
            self._is_flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    async def run(self) -> None:
        """Drive the engine until ``close``. If cancelled, the step in flight is still applied."""
        self._running = asyncio.current_task()
        try:
            while not self._is_stopping:
                self._woken.clear()
                step = self._engine.plan(self._clock.now())
                if step is None:
                    self._changed.set()
                    await self._nap()
                    continue
                self._tell(step.outcomes)
                if step.jobs:
                    await self._execute(step)
        finally:
            self._running = None
            self._changed.set()

    async def drain(self, timeout_s: float) -> bool:
        """Wait until the engine knows no job, at most ``timeout_s``. Whether none is left."""
        try:
            async with asyncio.timeout(timeout_s):
                while not self._engine.is_idle and self._running is not None:
                    self._changed.clear()
                    self._woken.set()
                    await self._changed.wait()
        except TimeoutError:
            pass
        return self._engine.is_idle

    async def close(self) -> None:
        """Stop after the step in flight and end the thread. Jobs that are left stay there."""
        self._is_stopping = True
        self._woken.set()
        while self._running is not None:
            self._changed.clear()
            await self._changed.wait()
        self._thread.shutdown(wait=True)

    async def _execute(self, step: Step[PlanT]) -> None:
        loop = asyncio.get_running_loop()

        def told(drawn: Sequence[Drawn], seconds: float) -> None:
            loop.call_soon_threadsafe(partial(self._advance, step, drawn, seconds))

        future = loop.run_in_executor(self._thread, self._begin(step.plan, told))
        self._is_executing, self._is_running_on, is_cancelled = True, step.is_run, False
        self._expire()
        while not future.done():
            waiter = loop.create_future()
            future.add_done_callback(partial(_release, waiter))
            try:
                await waiter  # not the future itself: cancelling us would cancel it
            except asyncio.CancelledError:
                is_cancelled = True  # the thread still writes: nothing may be freed yet
        self._is_executing = self._is_running_on = False
        self._expire()
        self._finish(step, future)
        if is_cancelled:
            raise asyncio.CancelledError

    def _advance(self, step: Step[PlanT], drawn: Sequence[Drawn], seconds: float) -> None:
        """A step of a run is over. It was told before the run's result, so it is heard before. What
        goes wrong is raised where the run's result is taken in, and no more of it is."""
        if self._fault is not None:
            return
        try:
            self._tell(self._engine.advance(step, drawn, seconds, self._clock.now()))
        except Exception as error:  # noqa: BLE001 - raised in _finish
            self._fault = error
        if self._interrupt is not None and (self._fault is not None or self._engine.has_news()):
            self._interrupt()

    def _expire(self) -> None:
        """A run of steps ends when the engine has to look at a deadline; a single step does not."""
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        if self._interrupt is None or not self._is_running_on:
            return
        deadline_s = self._engine.next_deadline()
        if deadline_s is not None and deadline_s != math.inf:
            left_s = max(0.0, deadline_s - self._clock.now())
            self._expiry = asyncio.get_running_loop().call_later(left_s, self._interrupt)

    def _finish(self, step: Step[PlanT], future: "asyncio.Future[ResultT]") -> None:
        """Take in what the thread made of the step. Whatever it raised, only its jobs fail, but for
        the loss of what computes: then no step can follow."""
        error = future.exception()
        if isinstance(error, InstanceLost):
            raise error
        fault, self._fault = self._fault, None
        if fault is not None and not isinstance(fault, InvariantBroken):
            raise fault
        error = error or fault
        outcomes: list[Outcome] = []
        if error is None:
            try:
                outcomes = self._engine.apply(step, future.result(), self._clock.now())
            except InvariantBroken as refused:
                error = refused
        if error is not None:
            _log.error("a step of %d jobs failed", len(step.jobs), exc_info=error)
            outcomes = self._engine.execution_failed(step)
        self._tell(outcomes)

    async def _nap(self) -> None:
        """Until somebody wakes us or the next deadline."""
        deadline_s, alarm = self._engine.next_deadline(), None
        if deadline_s is not None and deadline_s != math.inf:
            nap_s = max(deadline_s - self._clock.now(), SHORTEST_NAP_S)
            alarm = asyncio.get_running_loop().call_later(nap_s, self._woken.set)
        try:
            await self._woken.wait()
        finally:
            if alarm is not None:
                alarm.cancel()

    def _flush(self) -> None:
        self._is_flushing = False
        self._tell(self._engine.poll())

    def _tell(self, outcomes: Sequence[Outcome]) -> None:
        if outcomes:
            self._sink(outcomes)


def _be_nice(more: int) -> None:
    thread = threading.get_native_id()
    with suppress(OSError):  # a sandbox may forbid it: then everybody is equal
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + more)


def _release(waiter: "asyncio.Future[None]", _future: "asyncio.Future[Any]") -> None:
    """What was waited for is there."""
    if not waiter.done():
        waiter.set_result(None)
