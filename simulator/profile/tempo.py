"""How fast this machine is at the moment: a beat is a small piece of work that is always the same.

What a shared host gives its guests changes by a third within seconds. Whatever is measured can say
beside it how long a beat took just then, and be compared with what was measured at another time.
Knows a clock; not what is measured.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from statistics import median

BEATS = 3
"""A look takes the median of so many, behind one that wakes the core."""
LOOKS = 40
"""By which is found what is usual."""
REST_S = 0.02
"""Between two of them: a look meets a core that has rested, as what is measured does."""
EVERY_S = 0.1
"""Between two looks while something else goes on: a hundredth of one core's time."""
_TURNS = 2000


def beat() -> float:
    """Seconds of the processor that a beat takes now, a third of a millisecond or so: what an
    interpreter does all day. Others on the machine count only as far as they make it slower."""
    began_s = time.thread_time()
    seen: dict[int, int] = {}
    value = 0
    for number in range(_TURNS):
        seen[number & 255] = value
        value = (value * 31 + number) & 0xFFFF
    return time.thread_time() - began_s


class Tempo:
    """Compares now with what is usual."""

    def __init__(self, usual_s: float = 0.0, beat: Callable[[], float] = beat) -> None:
        """``usual_s``: of a beat, as another one found; 0: what it takes now, for ``LOOKS``. Blocks
        for a second then."""
        self._beat = beat
        self._seen: list[float] = []
        self.usual_s = usual_s or median(self._looks())

    def now(self) -> float:
        """How many times as long as usually work takes."""
        return self._look() / self.usual_s

    def correction(self) -> float:
        """By what to multiply seconds that were divided by ``now``, so that they are those of the
        tempo that was usual all the time, and not of the moment when this began; ``usual_s`` is
        that tempo then."""
        began_s, self.usual_s = self.usual_s, median(self._seen)
        return self.usual_s / began_s

    @asynccontextmanager
    async def beside(self) -> AsyncGenerator[list[float], None]:
        """What ``now`` says all the time until left, at least once: beside something that works,
        what that takes from caches included."""
        found = [self.now()]

        async def look() -> None:
            while True:
                await asyncio.sleep(EVERY_S)
                found.append(self.now())

        looking = asyncio.create_task(look())
        try:
            yield found
        finally:
            looking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await looking

    def _looks(self) -> list[float]:
        found = []
        for _ in range(LOOKS):
            time.sleep(REST_S)
            found.append(self._look())
        return found

    def _look(self) -> float:
        self._beat()
        self._seen.append(median(self._beat() for _ in range(BEATS)))
        return self._seen[-1]
