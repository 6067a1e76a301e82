"""When a run has lost: so many requests have missed their bounds that it cannot attain any more.

A search for goodput asks most systems at rates far beyond them, where queues grow for as long as
the run goes on. Knows rows, bounds and timers; not what a system is.
"""

import asyncio
from collections.abc import Callable, Sequence

from bench.figures import row_latency, slo_of
from bench.goodput import LEVELS
from bench.run import Row
from bench.workload import Arrival
from triptych.core.metrics import is_attained

MARGIN = 2.0
"""A run goes on until it has missed at least so many times what it may: near the level every
request counts, and the attainment is exact."""


def below(level: float, num_seeds: int) -> float:
    """The attainment below which a run may be given up. Of several seeds the mean is what counts:
    one alone must be so bad that all others cannot make up for it. Reports judge runs by
    ``LEVELS[0]`` too, whatever was asked for."""
    return 1.0 - max(MARGIN, num_seeds) * (1.0 - min(level, LEVELS[0]))


class Hopeless:
    """Counts misses as soon as they are certain: an answer that was too slow, and a first token
    that is not there when it is due."""

    def __init__(
        self, least: float, arrivals: Sequence[Arrival], warmup_s: float, stop: Callable[[], None]
    ) -> None:
        """``stop`` is called once, when attainment must be below ``least``."""
        num_counted = sum(each.after_s is not None or each.at_s >= warmup_s for each in arrivals)
        self._left = int((1.0 - least) * num_counted + 1e-9)
        self._warmup_s = warmup_s
        self._stop = stop
        self._due: dict[str, asyncio.TimerHandle | None] = {}
        """Alarms by request; None of one that has been counted."""

    def asked(self, request: str, arrival_s: float, ttft_s: float | None) -> None:
        """A request arrived just now, so long after the start."""
        if arrival_s >= self._warmup_s and ttft_s is not None:
            alarm = asyncio.get_running_loop().call_later(ttft_s, self._late, request)
            self._due[request] = alarm

    def began(self, request: str) -> None:
        """Its first token is there."""
        if not self.is_late(request) and (alarm := self._due.pop(request, None)) is not None:
            alarm.cancel()

    def is_late(self, request: str) -> bool:
        """Whether it missed its first token, and is not over."""
        return request in self._due and self._due[request] is None

    def ended(self, row: Row) -> None:
        """A request is over."""
        is_late = self.is_late(row.id)
        self.began(row.id)
        self._due.pop(row.id, None)
        if row.arrival_s < self._warmup_s or is_late:
            return
        found = row_latency(row)
        if found is None or not is_attained(found, slo_of(row)):
            self._missed()

    def _late(self, request: str) -> None:
        self._due[request] = None
        self._missed()

    def _missed(self) -> None:
        self._left -= 1
        if self._left == -1:
            self._stop()
