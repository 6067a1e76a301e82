"""Time and randomness are passed in.

Knows the clock's interface and its three forms. Monotonic seconds only; never wall time.
"""

import time
from typing import Protocol


class Clock(Protocol):
    """Source of monotonic seconds."""

    def now(self) -> float:
        """Monotonic seconds; only differences mean anything."""
        ...


class MonotonicClock:
    """The machine's monotonic clock."""

    def now(self) -> float:
        """Seconds of ``time.monotonic``."""
        return time.monotonic()


class ThreadClock:
    """The processor time of the thread that asks: it stands still while others run."""

    def now(self) -> float:
        """Seconds of ``time.thread_time``."""
        return time.thread_time()


class ManualClock:
    """A clock that a test or a simulation moves."""

    def __init__(self, start_s: float = 0.0) -> None:
        self._now_s = start_s

    def now(self) -> float:
        """The time last set."""
        return self._now_s

    def advance(self, seconds: float) -> None:
        """Move forward by ``seconds`` (>= 0)."""
        if seconds < 0:
            raise ValueError("seconds: a clock does not run backwards")
        self._now_s += seconds
