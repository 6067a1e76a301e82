"""When a step of several decodes begins on cores that others want too: not before a gap is over.

Decode has the shortest steps of all stages and begins the next one at once, so it is never behind
in the contest for a core, and makes many small steps of what could be fewer and larger ones. Knows
steps and how many threads would run; not who they are.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

from triptych.core.plan import LanguagePlan, Segment

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

    def wait(self, plan: LanguagePlan, is_over: Callable[[], bool] = lambda: False) -> float:
        """Return when ``plan`` is to begin, and how many seconds that took: none for all but
        several sequences that decode and nothing else. One that decodes alone is not kept back:
        its steps cannot become fewer. Ends early if ``is_over``: somebody waits for the step."""
        if len(plan.segments) < 2 or not all(map(_is_decode, plan.segments)):
            return 0.0
        came_s = now_s = time.monotonic()
        until_s = self._began_s + self._gap_s
        while now_s < until_s and not is_over() and self._is_contended():
            time.sleep(min(_LOOK_EVERY_S, until_s - now_s))
            now_s = time.monotonic()
        self._began_s = now_s
        return now_s - came_s


def _is_decode(segment: Segment) -> bool:
    draw = segment.draw
    return len(segment.tokens) == 1 and draw is not None and draw.position > draw.prompt_len


def are_cores_contended() -> bool:
    """Whether more threads of the machine would run now than we may use cores; False where the
    system does not tell (it is Linux that does). True on a busy host of which we may use some cores
    only, whoever is on these; a quota of processor time is not seen."""
    try:
        running = int(_LOAD.read_text().split()[3].partition("/")[0])
        return running > len(os.sched_getaffinity(0))
    except (OSError, AttributeError, IndexError, ValueError):
        return False
