"""Processes with one interpreter each: event loops, and the steps in threads beside them.

Knows who must wait for whom inside a process; not whose processes they are, nor how cores are
given out between them.
"""

import asyncio
from collections import deque
from typing import Any

from simulator.cores import Call, Processors
from simulator.fair import Runner


class Lock:
    """What one interpreter lets one thread at a time have: while a process's event loop works, the
    steps in its other threads stand still. They are thousands of short calls, each of which asks
    for the lock; the loop, once it has it, keeps it until it waits."""

    def __init__(self, cores: Processors) -> None:
        self._cores = cores
        self._steps: dict[Any, None] = {}
        self._waiting: list[Call] = []
        self._is_held = False

    def begin(self, work_s: float, call: Call, runner: Runner) -> Any:
        """A step of a thread; see ``Cores.begin``."""

        def end() -> None:
            del self._steps[step]
            call()

        step = self._cores.begin(work_s, end, runner)
        self._steps[step] = None
        if self._is_held:
            self._cores.pause(step)
        return step

    def at(self, step: Any, work_s: float, call: Call) -> None:
        """See ``Cores.at``."""
        if self._is_held:
            self._cores.resume(step)
        self._cores.at(step, work_s, call)
        if self._is_held:
            self._cores.pause(step)

    def hold(self) -> None:
        """The loop works: it is on a core, or was when it was taken off."""
        self._is_held = True
        for step in self._steps:
            self._cores.pause(step)

    def free(self) -> None:
        """The loop waits. Does nothing if it never worked."""
        if not self._is_held:
            return
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


class Held:
    """Steps of one thread that need the lock all the time. Implements
    ``simulator.world.Shared``."""

    def __init__(self, lock: Lock, runner: Runner) -> None:
        self._lock = lock
        self._runner = runner

    def begin(self, work_s: float, call: Call) -> Any:
        """See ``Cores.begin``."""
        return self._lock.begin(work_s, call, self._runner)

    def at(self, step: Any, work_s: float, call: Call) -> None:
        """See ``Cores.at``."""
        self._lock.at(step, work_s, call)


class Free:
    """Steps of one thread that compute without the lock, in one call, and need it to go on behind
    it. Implements ``simulator.world.Shared``."""

    def __init__(self, cores: Processors, lock: Lock, runner: Runner) -> None:
        self._cores = cores
        self._lock = lock
        self._runner = runner

    def begin(self, work_s: float, call: Call) -> Any:
        """See ``Cores.begin``."""
        return self._cores.begin(work_s, lambda: self._lock.when_free(call), self._runner)

    def at(self, step: Any, work_s: float, call: Call) -> None:
        """See ``Cores.at``."""
        self._cores.at(step, work_s, call)


class Thread:
    """Does one thing after the other, in the order of asking: an event loop."""

    def __init__(self, cores: Processors, lock: Lock | None = None) -> None:
        """``lock``: of the interpreter that it shares with steps."""
        self._cores = cores
        self._lock = lock
        self._runner = Runner()
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
            await self._cores.run(work_s, self._runner)
            return
        try:
            await self._cores.run(work_s, self._runner, self._lock.hold)
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
