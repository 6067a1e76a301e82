"""Virtual time: an event loop whose clock jumps to whatever happens next.

Coroutines, timers, locks and queues are asyncio's own, so whatever runs on an event loop runs here
unchanged. Work handed to an executor is done at once, in this thread; where it says that it takes
time (``Takes``), that time passes before its result is there. Nothing runs in parallel, so equal
programs give equal runs. Knows no server.
"""

import asyncio
import contextvars
import heapq
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, TypeVar

from triptych.core.errors import InvariantBroken

T = TypeVar("T")
Behind = Callable[[Callable[[], None]], None]
"""Calls what it is given, at once or when other work is done."""

MAX_CANCELLED = 10_000
"""Timers that were cancelled and are still in the heap."""


class Takes:
    """Work that takes virtual time, and its result."""

    __slots__ = ("_behind", "_future", "_job", "_timer", "_world", "begin_s", "cores", "marks",
                 "result", "seconds")  # fmt: skip

    def __init__(
        self,
        seconds: float,
        result: Callable[[], Any],
        marks: tuple[tuple[float, Callable[[], None]], ...] = (),
        cores: "Shared | None" = None,
        behind: Behind | None = None,
    ) -> None:
        """``result`` is called when the time has passed; ``marks`` are called on the way, each at
        so many seconds after the beginning. On ``cores`` all of these are seconds of work, and
        ``seconds`` is what they took once they are over. The result is told when ``behind`` calls
        what it is given."""
        self.seconds = seconds
        self.result = result
        self.marks = marks
        self.cores = cores
        self._behind = behind
        self.begin_s = 0.0
        self._world: World | None = None
        self._future: asyncio.Future[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._job: Any = None

    def start(self, world: "World", future: "asyncio.Future[Any]") -> None:
        """The work begins now; ``future`` is for its result."""
        self.begin_s, self._future, self._world = world.time(), future, world
        if self.cores is not None:
            self._job = self.cores.begin(self.seconds, self._end)
        else:
            self._timer = world.call_later(self.seconds, self._end)
        for after_s, call in self.marks:
            if after_s < self.seconds and self.cores is not None:
                self.cores.at(self._job, after_s, call)
            elif after_s < self.seconds:
                world.call_later(after_s, call)

    def shorten(self, world: "World", seconds: float) -> None:
        """The work will have taken only ``seconds``, which are not over yet."""
        if self._timer is not None:
            self._timer.cancel()
            self.seconds = seconds
            self._timer = world.call_at(self.begin_s + seconds, self._end)

    def _end(self) -> None:
        assert self._world is not None, "started"
        self._timer = None
        for after_s, call in self.marks:
            if after_s >= self.seconds:
                call()
        if self.cores is not None:
            self.seconds = self._world.time() - self.begin_s
        result = self.result()
        if self._behind is not None:
            self._behind(partial(self._tell, result))
        else:
            self._tell(result)

    def _tell(self, result: Any) -> None:
        if self._future is not None and not self._future.done():
            self._future.set_result(result)


class Shared(Protocol):
    """``simulator.cores.Cores``, as far as work that is begun on them cares."""

    def begin(self, work_s: float, call: Callable[[], None]) -> Any:
        """``call`` when a job of so many seconds of work is done."""
        ...

    def at(self, job: Any, work_s: float, call: Callable[[], None]) -> Any:
        """``call`` when the job has had so much."""
        ...


class _Soon(asyncio.Handle):
    """A handle without what only a loop in debug mode asks of it."""

    __slots__ = ()

    def __init__(
        self,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        loop: "World",
        context: contextvars.Context | None,
    ) -> None:
        self._context = contextvars.copy_context() if context is None else context
        self._loop = loop
        self._callback = callback
        self._args = args
        self._cancelled = False
        self._repr = self._source_traceback = None


class _Timer(asyncio.TimerHandle):
    """The same of a timer."""

    __slots__ = ()

    def __init__(
        self,
        when: float,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        loop: "World",
        context: contextvars.Context | None,
    ) -> None:
        self._context = contextvars.copy_context() if context is None else context
        self._loop = loop
        self._callback = callback
        self._args = args
        self._cancelled = False
        self._repr = self._source_traceback = None
        self._when = when
        self._scheduled = True

    def cancel(self) -> None:
        """Never call."""
        if not self._cancelled:
            self._cancelled = True
            self._callback = self._args = None  # type: ignore[assignment]
            self._loop._timer_handle_cancelled(self)


class World(asyncio.BaseEventLoop):
    """An event loop under a virtual clock that begins at 0.

    Builds on ``asyncio.BaseEventLoop``'s queue of what is ready and on the fields of its handles,
    whose names have been the same since Python 3.7; the tests of this module see that they are.
    """

    _ready: deque[asyncio.Handle]

    def __init__(self) -> None:
        super().__init__()
        self._now_s = 0.0
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._num_timers = 0
        """Made so far."""
        self._num_cancelled = 0
        """About so many are in the heap."""
        self.num_turns = 0
        """Turns of the loop so far."""

    def time(self) -> float:
        """Virtual seconds."""
        return self._now_s

    def now(self) -> float:
        """Virtual seconds, as ``core.clock.Clock``."""
        return self._now_s

    def run_in_executor(  # type: ignore[override]
        self,
        executor: Any,  # noqa: ARG002
        func: Callable[..., T],
        *args: Any,
    ) -> "asyncio.Future[T]":
        """Do the work now; its result is there when the time that it takes has passed."""
        future: asyncio.Future[T] = self.create_future()
        try:
            result = func(*args)
        except BaseException as error:  # noqa: BLE001  whatever a thread would have raised
            future.set_exception(error)
            return future
        if isinstance(result, Takes):
            result.start(self, future)
        else:
            future.set_result(result)
        return future

    def call_soon(  # type: ignore[override]
        self,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        """Call in the next turn; the checks that asyncio makes here are for threads."""
        handle = _Soon(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_later(  # type: ignore[override]
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        """Call when so many virtual seconds have passed."""
        return self.call_at(self._now_s + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        """Call at a time; of equal times, who asked first is called first."""
        timer = _Timer(when, callback, args, self, context)
        self._num_timers += 1
        heapq.heappush(self._timers, (when, self._num_timers, timer))
        return timer

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:  # noqa: ARG002
        self._num_cancelled += 1

    def _run_once(self) -> None:
        """One turn: all that is ready now. If nothing is, time jumps to what is due next."""
        self.num_turns += 1
        if self._num_cancelled > MAX_CANCELLED:
            self._sweep()
        ready, timers = self._ready, self._timers
        while timers and timers[0][2]._cancelled:
            heapq.heappop(timers)
            self._num_cancelled -= 1
        if not ready:
            if not timers:
                raise InvariantBroken("the world stands still: nothing will ever happen")
            self._now_s = max(self._now_s, timers[0][0])
        while timers and timers[0][0] <= self._now_s:
            timer = heapq.heappop(timers)[2]
            if timer._cancelled:
                self._num_cancelled -= 1
            else:
                ready.append(timer)
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle._cancelled:
                handle._run()

    def _sweep(self) -> None:
        """Forget the timers that were cancelled."""
        self._timers = [entry for entry in self._timers if not entry[2]._cancelled]
        heapq.heapify(self._timers)
        self._num_cancelled = 0

    def _write_to_self(self) -> None:
        """There is no other thread to be woken by."""

    def _process_events(self, event_list: Any) -> None:
        """There is no file to wait for."""
