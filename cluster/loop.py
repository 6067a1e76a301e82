"""The event loop of processes that serve: libuv's, half of whose work is not Python.

Whoever serves hears of every token of every request, and what the loop itself costs is a good part
of that. Profiles, which measure what serves, run on it too; tests, simulations and clients on
asyncio's own, with the same results.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import uvloop

T = TypeVar("T")


def run_loop(work: Coroutine[Any, Any, T]) -> T:
    """``asyncio.run`` on that loop. Its timers count whole milliseconds."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)
