"""A run of decode steps that is told step by step, in virtual time.

Knows seconds of work and who hears when they are done; what a step is, others know.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from simulator.world import Behind, Shared, Takes, World


class Over(Protocol):
    """Hears of each step."""

    def __call__(self, index: int, seconds: float, *, is_last: bool) -> Any:
        """The step of that number took so long; if it is the last one, the result of the run."""
        ...


class Ahead(Takes):
    """Steps one after the other, whoever hears of them. One that is interrupted ends behind the
    step in flight."""

    __slots__ = ("_count", "_index", "_is_interrupted", "_over", "_since_s", "_step_s", "_wait_s")

    def __init__(
        self,
        count: int,
        step_s: Callable[[int], float],
        over: Over,
        cores: Shared,
        wait_s: float,
        behind: Behind,
    ) -> None:
        """``count`` steps, the ``n``-th of which is ``step_s(n)`` seconds of work on ``cores``, and
        ``wait_s`` between two of them. ``behind`` the last one there is work before its result is
        taken in: it calls what it is given when that is done."""
        super().__init__(0.0, lambda: None, (), cores, behind)
        self._count = count
        self._step_s = step_s
        self._wait_s = wait_s
        self._over = over
        self._index = 0
        self._since_s = 0.0
        self._is_interrupted = False

    def start(self, world: World, future: "asyncio.Future[Any]") -> None:
        """See ``Takes``."""
        self.begin_s, self._future, self._world = world.time(), future, world
        self._next()

    def interrupt(self) -> None:
        """No other step is begun."""
        self._is_interrupted = True

    def _next(self) -> None:
        assert self._world is not None, "started"
        assert self.cores is not None, "always"
        self._since_s = self._world.time()
        self.cores.begin(self._step_s(self._index), self._end)

    def _end(self) -> None:
        assert self._world is not None, "started"
        is_last = self._is_interrupted or self._index == self._count - 1
        seconds = self._world.time() - self._since_s
        result = self._over(self._index, seconds, is_last=is_last)
        self._index += 1
        if not is_last and self._wait_s > 0.0:
            self._world.call_later(self._wait_s, self._next)
        elif not is_last:
            self._next()
        elif self._behind is not None:
            self._behind(partial(self._tell, result))
