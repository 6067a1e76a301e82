"""What will be asked for: a level, a damped trend and a burst, for each of several rates.

Holt's method with Gardner and McKenzie's damped trend, made robust by clipping surprises after
Gelper, Fried and Croux (Journal of Forecasting 29, 2010). Knows numbers over time; not what they
are.
"""

import math

import msgspec


class Knobs(msgspec.Struct, frozen=True):
    """Ours."""

    level_s: float = 15.0
    """Memory of the level: what is older by this counts a third."""
    trend_s: float = 60.0
    """Memory of the trend."""
    damping_s: float = 60.0
    """A trend goes on for about so long."""
    spread_s: float = 120.0
    """Memory of the size of surprises."""
    clip: float = 3.0
    """A surprise counts as at most so many usual ones, unless the one before it was as large and
    on the same side: once is chance, twice is a change."""
    least: float = 0.05
    """Share of the level that no surprise is smaller than, usually."""


DEFAULTS = Knobs()


class Series:
    """One rate. ``see`` changes it; everything else is pure."""

    def __init__(self, knobs: Knobs = DEFAULTS) -> None:
        self._knobs = knobs
        self._at_s = 0.0
        self._level: float | None = None
        self._trend = 0.0
        self._spread = 0.0
        self._beyond = 0.0

    def see(self, value: float, now_s: float) -> None:
        """The rate was ``value`` (>= 0) over the time that ended at ``now_s``. Equal times count
        once."""
        if self._level is None:
            self._level, self._at_s = value, now_s
            return
        passed_s = now_s - self._at_s
        if passed_s <= 0.0:
            return
        knobs, before = self._knobs, self._level
        expected = self.mean(passed_s)
        surprise = self._counted(value - expected)
        self._level = max(0.0, expected + _share(passed_s, knobs.level_s) * surprise)
        slope = (self._level - before) / passed_s
        self._trend *= math.exp(-passed_s / knobs.damping_s)
        self._trend += _share(passed_s, knobs.trend_s) * (slope - self._trend)
        # The mean absolute surprise times 1.2533 is the standard deviation of a normal one.
        seen = 1.2533 * abs(surprise)
        self._spread += _share(passed_s, knobs.spread_s) * (seen - self._spread)
        self._at_s = now_s

    def mean(self, ahead_s: float) -> float:
        """Expected rate ``ahead_s`` seconds after the last one seen; 0 if none was."""
        if self._level is None:
            return 0.0
        reach_s = self._knobs.damping_s * _share(ahead_s, self._knobs.damping_s)
        return max(0.0, self._level + self._trend * reach_s)

    def burst(self, ahead_s: float, deviations: float) -> float:
        """A rate that is exceeded seldom: so many standard deviations of surprises above."""
        return self.mean(ahead_s) + deviations * self._spread

    def _counted(self, surprise: float) -> float:
        usual = max(self._spread, self._knobs.least * (self._level or 0.0))
        most = self._knobs.clip * usual
        if abs(surprise) <= most:
            self._beyond = 0.0
            return surprise
        side = math.copysign(1.0, surprise)
        is_change, self._beyond = side == self._beyond, side
        return surprise if is_change else math.copysign(most, surprise)


def _share(passed_s: float, memory_s: float) -> float:
    return 1.0 - math.exp(-passed_s / memory_s)
