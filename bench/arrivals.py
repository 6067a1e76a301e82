"""When requests arrive: seconds after the start, in order. Pure functions of their arguments.

Open loop: arrivals do not wait for answers, as clients do not wait for each other.
"""

import random
from itertools import accumulate


def uniform(count: int, rate: float) -> tuple[float, ...]:
    """``count`` arrivals at equal distance, ``rate`` per second, the first at 0."""
    _check(count, rate)
    return tuple(index / rate for index in range(count))


def poisson(count: int, rate: float, seed: int) -> tuple[float, ...]:
    """``count`` arrivals of a Poisson process of ``rate`` per second; the first at 0."""
    _check(count, rate)
    source = random.Random(f"arrivals {seed}")
    gaps = (source.expovariate(rate) for _ in range(count - 1))
    return tuple(accumulate(gaps, initial=0.0))


def burst(count: int, size: int, period_s: float) -> tuple[float, ...]:
    """``size`` arrivals at once every ``period_s`` seconds, ``count`` in all."""
    _check(count, period_s)
    if size < 1:
        raise ValueError("size: a burst has at least one arrival")
    return tuple((index // size) * period_s for index in range(count))


def _check(count: int, rate: float) -> None:
    if count < 1:
        raise ValueError("count: at least one arrival")
    if rate <= 0:
        raise ValueError("rate: must be positive")
