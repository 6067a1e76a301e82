"""For how long nobody was given room although somebody waits for it. Knows ids and times."""

import math
from collections.abc import Sequence

from triptych.core.ids import JobId


class Patience:
    """Of the first in line. ``until_s`` is when it ends; infinite while nobody waits."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._first: JobId | None = None
        self.until_s = math.inf

    def runs_out(self, waiting: Sequence[JobId], now: float) -> bool:
        """Take in who waits for room now. Whether the first of them has done so for the limit;
        then it begins anew."""
        first = waiting[0] if waiting else None
        if first != self._first:
            self._first = first
            self.until_s = math.inf if first is None else now + self._limit_s
        if now < self.until_s:
            return False
        self.until_s = now + self._limit_s
        return True
