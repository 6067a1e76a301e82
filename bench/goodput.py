"""The rate up to which a system keeps its promises: from a sweep of rates, or found by bisection.

Goodput is the greatest offered rate whose attainment is at least a level (90, 95, 99 %). Knows
pairs of rate and attainment, and intervals over seeds; no run and no server.
"""

import itertools
import random
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean

import msgspec

from triptych.core.metrics import percentile

LEVELS = (0.9, 0.95, 0.99)
_RESAMPLES = 4000
_MAX_EXACT = 5
"""Up to so many values all n^n resamples are looked at instead of a sample of them."""


class Interval(msgspec.Struct, frozen=True):
    """A mean, and the middle 95 % of the means of resamples."""

    mean: float
    low: float
    high: float


def bootstrap(values: Sequence[float], seed: int = 0) -> Interval:
    """Percentile bootstrap of the mean over seeds (Efron, 1979). Few values make it too narrow:
    of three, its ends are nearly the least and the greatest. Raises ValueError without values."""
    if not values:
        raise ValueError("values: an interval needs at least one")
    count = len(values)
    if count <= _MAX_EXACT:
        means = [fmean(each) for each in itertools.product(values, repeat=count)]
    else:
        source = random.Random(f"bootstrap {seed}")
        means = [fmean(source.choices(values, k=count)) for _ in range(_RESAMPLES)]
    means.sort()
    return Interval(fmean(values), percentile(means, 0.025), percentile(means, 0.975))


class Point(msgspec.Struct, frozen=True, order=True):
    """What was measured at one rate."""

    rate: float
    attainment: float


class Crossing(msgspec.Struct, frozen=True):
    """Where attainment falls below a level, counted from the lowest rate."""

    rate: float
    """The goodput: where the line between the last good and the first bad rate crosses the level;
    the greatest measured rate if none was bad, 0 if none was good."""
    kind: str
    """``crossed``; ``above``: every rate was good, the goodput is at least ``rate``; ``below``: not
    even the least was, the goodput is less than ``bad``."""
    good: float
    """Greatest rate in front of the crossing that was measured and good."""
    bad: float
    """Least measured rate behind it that was not; 0 if there is none."""
    last: float
    """The last crossing: differs from ``rate`` where the curve comes back above the level."""

    @property
    def is_monotone(self) -> bool:
        """Whether there was one crossing only."""
        return self.last == self.rate


def crossing(points: Iterable[Point], level: float) -> Crossing:
    """The first crossing of a sweep. Raises ValueError without points."""
    ordered = sorted(points)
    if not ordered:
        raise ValueError("points: a goodput needs at least one rate")
    falls = [
        (before, after)
        for before, after in itertools.pairwise(ordered)
        if before.attainment >= level > after.attainment
    ]
    if ordered[0].attainment < level:
        last = _between(*falls[-1], level) if falls else 0.0
        last = ordered[-1].rate if ordered[-1].attainment >= level else last
        return Crossing(0.0, "below", 0.0, ordered[0].rate, last)
    if not falls:
        return Crossing(ordered[-1].rate, "above", ordered[-1].rate, 0.0, ordered[-1].rate)
    rate = _between(*falls[0], level)
    is_good_again = ordered[-1].attainment >= level
    last = ordered[-1].rate if is_good_again else _between(*falls[-1], level)
    return Crossing(rate, "crossed", falls[0][0].rate, falls[0][1].rate, last)


def _between(good: Point, bad: Point, level: float) -> float:
    share = (good.attainment - level) / (good.attainment - bad.attainment)
    return good.rate + share * (bad.rate - good.rate)


def over_seeds(curves: Sequence[Sequence[Point]], level: float) -> Interval:
    """Goodput of every seed's own curve, with its interval."""
    return bootstrap([crossing(curve, level).rate for curve in curves])


class Bisection:
    """Which rate to measure next. Grows by ``growth`` (doubles) until a rate is bad, shrinks by it
    until one is good, then closes in until the two are within ``tolerance`` (a share of the rate)
    of each other. A small growth saves runs far beyond the goodput where the start is near it."""

    def __init__(self, start: float, level: float = 0.9, tolerance: float = 0.05,
                 limits: tuple[float, float] = (1e-3, 1e6),
                 growth: float = 2.0) -> None:  # fmt: skip
        if not limits[0] <= start <= limits[1] or tolerance <= 0 or growth <= 1:
            raise ValueError(
                "start: must be a rate within the limits, with a positive tolerance, growth above 1"
            )
        self._start, self._level, self._tolerance, self._limits = start, level, tolerance, limits
        self._growth = growth
        self.points: list[Point] = []

    @property
    def good(self) -> float | None:
        """Greatest good rate below every bad one."""
        rates = [each.rate for each in self.points if each.attainment >= self._level]
        bad = self.bad
        return max((rate for rate in rates if bad is None or rate < bad), default=None)

    @property
    def bad(self) -> float | None:
        """Least bad rate: the search is for the first crossing."""
        return min((p.rate for p in self.points if p.attainment < self._level), default=None)

    def next_rate(self) -> float | None:
        """The rate to measure; None when it is known well enough, or beyond the limits."""
        if not self.points:
            return self._start
        good, bad = self.good, self.bad
        least, greatest = self._limits
        if bad is None:
            return None if good is None or good >= greatest else min(self._growth * good, greatest)
        if good is None:
            return None if bad <= least else max(bad / self._growth, least)
        return None if bad - good <= self._tolerance * good else (good + bad) / 2

    def tell(self, rate: float, attainment: float) -> None:
        """What was measured."""
        self.points.append(Point(rate, attainment))

    def correct(self, rate: float, attainment: float) -> None:
        """What was measured at ``rate`` was not right."""
        self.points = [each for each in self.points if each.rate != rate]
        self.tell(rate, attainment)

    def result(self) -> Crossing:
        """The crossing found so far."""
        return crossing(self.points, self._level)

    def run(self, measure: Callable[[float], float]) -> Crossing:
        """Measure until it is known."""
        while (rate := self.next_rate()) is not None:
            self.tell(rate, measure(rate))
        return self.result()
