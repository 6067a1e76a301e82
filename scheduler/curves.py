"""Curves through measured points: what a quantity costs, by one number.

Knows points and straight lines between them; not what they stand for. Plain floats and bisection,
since a simulated hour asks millions of times.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable
from math import ceil, exp, log
from statistics import fmean

import msgspec

from triptych.core.errors import ConfigError


class Curve(msgspec.Struct, frozen=True):
    """Straight lines through points ``(xs[i], ys[i])``, ``xs`` rising; level before the first,
    on along the last line beyond the last. Zero everywhere without points."""

    xs: tuple[float, ...] = ()
    ys: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if len(self.xs) != len(self.ys):
            raise ConfigError(f"curve: {len(self.xs)} xs and {len(self.ys)} ys")
        if any(self.xs[i] >= self.xs[i + 1] for i in range(len(self.xs) - 1)):
            raise ConfigError("curve: xs must rise")

    def at(self, x: float) -> float:
        """The value at ``x``."""
        xs = self.xs
        if not xs:
            return 0.0
        right = bisect_right(xs, x)
        if not right or len(xs) == 1:
            return self.ys[0]
        if right == len(xs):
            right -= 1
        low, before = xs[right - 1], self.ys[right - 1]
        return before + (self.ys[right] - before) * (x - low) / (xs[right] - low)

    def total(self, start: float, stride: float, count: int) -> float:
        """The sum of ``at(start + i * stride)`` for ``i`` in ``range(count)``, ``stride >= 0``: an
        arithmetic series for each line that is crossed, however large ``count`` is."""
        xs, done, total = self.xs, 0, 0.0
        while done < count:
            x = start + done * stride
            right = bisect_right(xs, x)
            here = count - done
            if stride > 0.0 and right < len(xs) - (right > 0):
                here = min(here, max(1, ceil((xs[right] - x) / stride)))
            total += here * (self.at(x) + self.at(x + (here - 1) * stride)) / 2.0
            done += here
        return total


def line(start: float, slope: float) -> Curve:
    """``start + slope * x`` for ``x >= 0``."""
    return Curve((0.0, 1.0), (start, start + slope))


def rising(points: Iterable[tuple[float, float]], tolerance: float = 0.0) -> Curve:
    """The curve nearest to ``points`` (y > 0, in any order) in the mean square of the logarithm of
    y that never falls (pool adjacent violators: Barlow et al. 1972, section 1.2), ``thinned``.

    What is measured dips where a kernel changes; what is planned with must not say that more work
    takes less time.
    """
    measured = defaultdict(list)
    for x, y in points:
        measured[x].append(log(y))
    pools: list[tuple[list[float], list[float]]] = []
    for x in sorted(measured):
        xs, logs = [x], measured[x]
        while pools and fmean(pools[-1][1]) >= fmean(logs):
            before = pools.pop()
            xs, logs = before[0] + xs, before[1] + logs
        pools.append((xs, logs))
    kept = []
    for xs, logs in pools:
        kept += [(x, exp(fmean(logs))) for x in dict.fromkeys((xs[0], xs[-1]))]
    return thinned(kept, tolerance)


def thinned(points: Iterable[tuple[float, float]], tolerance: float) -> Curve:
    """A curve through some of ``points`` (x rising, y > 0) that misses none of the others by more
    than the share ``tolerance`` of its y: from each kept point the farthest next one that does."""
    every = list(points)
    kept, start = every[:1], 0
    while start < len(every) - 1:
        end = start + 1
        while end + 1 < len(every) and _is_near(every[start : end + 2], tolerance):
            end += 1
        kept.append(every[end])
        start = end
    return Curve(tuple(x for x, _ in kept), tuple(y for _, y in kept))


def _is_near(points: list[tuple[float, float]], tolerance: float) -> bool:
    chord = Curve((points[0][0], points[-1][0]), (points[0][1], points[-1][1]))
    return all(abs(chord.at(x) - y) <= tolerance * y for x, y in points[1:-1])
