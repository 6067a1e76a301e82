"""Who has a core that several stages want: a gap between decode steps, a niceness of pictures.

Decode has the shortest steps of all stages and begins the next one at once, so it is never behind
in the contest for a core, and makes many small steps of what could be fewer and larger ones. Where
pictures are encoded in the same process, it is they that can wait. Knows steps and how many threads
would run; not who they are.
"""

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from triptych.core.plan import LanguagePlan

_LOOK_EVERY_S = 0.0005
_LOAD = Path("/proc/loadavg")


class Pace:
    """Steps of one executor. All calls come from its thread."""

    def __init__(self, gap_s: float, is_contended: Callable[[], bool] | None = None) -> None:
        """``gap_s``: from the beginning of one such step to that of the next, at least, while
        ``is_contended``: somebody waits for a core (as the system tells)."""
        self._gap_s = gap_s
        self._is_contended = is_contended or are_cores_contended
        self._began_s = 0.0

    def wait(self, plan: LanguagePlan) -> float:
        """Return when ``plan`` is to begin, and how many seconds that took: none for all but
        several sequences that decode and nothing else. One that decodes alone is not kept back:
        its steps cannot become fewer."""
        if len(plan.segments) < 2 or any(len(segment.tokens) > 1 for segment in plan.segments):
            return 0.0
        came_s = now_s = time.monotonic()
        until_s = self._began_s + self._gap_s
        while now_s < until_s and self._is_contended():
            time.sleep(min(_LOOK_EVERY_S, until_s - now_s))
            now_s = time.monotonic()
        self._began_s = now_s
        return now_s - came_s


class Niceness:
    """Of the one thread that executes something: added once, as soon as it is known."""

    def __init__(self, more: int) -> None:
        """``more``: as ``os.nice`` has it, 0 to 19."""
        self._more = more

    def here(self) -> None:
        """Called by that thread. Linux has a niceness for each; elsewhere nothing happens."""
        if self._more and sys.platform == "linux":
            thread = threading.get_native_id()
            now = os.getpriority(os.PRIO_PROCESS, thread)
            os.setpriority(os.PRIO_PROCESS, thread, now + self._more)
        self._more = 0


def are_cores_contended() -> bool:
    """Whether more threads of the machine would run now than we may use cores; False where the
    system does not tell (it is Linux that does)."""
    try:
        running = int(_LOAD.read_text().split()[3].partition("/")[0])
        return running > len(os.sched_getaffinity(0))
    except (OSError, AttributeError, IndexError, ValueError):
        return False
