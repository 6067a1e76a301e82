"""The highest rate at which something still holds: bisection, for goodput and for plans.

Knows a question that is answered by yes or no at a number, and how to ask it seldom. It does not
know what a rate is. Attainment over rate need not fall all the way (a scheduler may do worse at a
low rate than at a higher one), so every answer says which crossing it is and how many were seen.
"""

import math
from collections.abc import Callable, Sequence
from enum import Enum
from itertools import pairwise
from statistics import NormalDist, fmean, stdev

import msgspec

from triptych.core.errors import ConfigError


class Which(Enum):
    """Which of several crossings is wanted."""

    FIRST = "first"
    """The end of the range from ``low`` on in which it always holds: what one may rely on."""
    LAST = "last"
    """The highest place at all where it stops holding, as some papers report it."""


class Crossing(msgspec.Struct, frozen=True):
    """Where it stops to hold."""

    value: float
    """It was seen to hold here; ``low`` if it held nowhere."""
    above: float
    """It was seen not to hold here, at most the tolerance higher; ``inf`` if ``is_capped``."""
    which: Which
    num_crossings: int
    """Times that it went from holding to not holding, over all numbers asked about. More than
    one: it is not monotone, and ``which`` matters."""
    is_met: bool
    """Whether it held anywhere that was asked about."""
    is_capped: bool
    """Whether it still held at ``high``: the true crossing is higher, or there is none."""
    asked: tuple[tuple[float, bool], ...]
    """Everything that was asked, in ascending order."""


def highest(
    is_met: Callable[[float], bool],
    low: float,
    high: float,
    tolerance: float,
    *,
    which: Which = Which.FIRST,
    num_probes: int = 2,
) -> Crossing:
    """The crossing between ``low`` and ``high``, to ``tolerance`` in the same unit.

    First ``num_probes`` evenly spaced numbers are asked, both ends among them; then the wanted
    crossing is halved. With two probes and a monotone question this is plain bisection and asks
    ``2 + log2((high - low) / tolerance)`` times. More probes find islands wider than their
    distance; narrower ones may be missed, and a crossing is then still a true one.
    Raises ConfigError for a range or tolerance that cannot be.
    """
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigError(f"low, high: {low} must be below {high}, both finite")
    if not tolerance > 0.0:
        raise ConfigError(f"tolerance: {tolerance} must be above 0")
    if num_probes < 2:
        raise ConfigError(f"num_probes: {num_probes} must be at least 2")
    answers: dict[float, bool] = {}

    def ask(number: float) -> bool:
        if number not in answers:
            answers[number] = is_met(number)
        return answers[number]

    step = (high - low) / (num_probes - 1)
    probes = [low + step * index for index in range(num_probes - 1)] + [high]
    # From below, the first "no" ends the search: higher rates cost a simulator most.
    held = _held(ask, probes, which)
    if held is not None and held + 1 < len(probes):
        _halve(ask, probes[held], probes[held + 1], tolerance)
    return _read(answers, which, high)


def _held(ask: Callable[[float], bool], probes: Sequence[float], which: Which) -> int | None:
    """Index of the probe below the wanted crossing."""
    if which is Which.LAST:
        return next((i for i in reversed(range(len(probes))) if ask(probes[i])), None)
    failed = next((i for i in range(len(probes)) if not ask(probes[i])), len(probes))
    return failed - 1 if failed else None


def _halve(ask: Callable[[float], bool], held: float, failed: float, tolerance: float) -> None:
    while failed - held > tolerance:
        middle = (held + failed) / 2
        if not held < middle < failed:
            return
        if ask(middle):
            held = middle
        else:
            failed = middle


def _read(answers: dict[float, bool], which: Which, high: float) -> Crossing:
    asked = sorted(answers.items())
    falls = [
        (below, above) for (below, holds), (above, still) in pairwise(asked) if holds and not still
    ]
    is_capped = answers.get(high, False) and (which is Which.LAST or not falls)
    if is_capped:
        value, above = high, math.inf
    elif which is Which.FIRST and not asked[0][1]:
        value, above = asked[0][0], asked[0][0]
    elif falls:
        value, above = falls[0] if which is Which.FIRST else falls[-1]
    else:
        value, above = asked[0][0], asked[0][0]
    return Crossing(
        value=value,
        above=above,
        which=which,
        num_crossings=len(falls),
        is_met=any(answers.values()),
        is_capped=is_capped,
        asked=tuple(asked),
    )


class Interval(msgspec.Struct, frozen=True):
    """A mean over seeds and how sure it is."""

    mean: float
    low: float
    high: float
    """Student's t interval of the mean at ``confidence``; infinite for a single seed."""
    confidence: float
    crossings: tuple[Crossing, ...]
    """One a seed, in the order of the seeds."""


def highest_over_seeds(
    is_met: Callable[[float, int], bool],
    seeds: Sequence[int],
    search: Callable[[Callable[[float], bool]], Crossing],
    confidence: float = 0.95,
) -> Interval:
    """One search a seed, then the mean of their crossings with its interval.

    ``is_met(number, seed)`` must be a function of both: with common random numbers each seed is a
    question without noise, so no single bisection is led astray by luck, and seeds are independent
    samples of the crossing. ``search`` is ``highest`` with everything but the question.
    A crossing is known to its tolerance only, which the interval does not contain.
    Raises ConfigError without seeds or with one twice.
    """
    if not seeds or len(set(seeds)) != len(seeds):
        raise ConfigError(f"seeds: {list(seeds)} must be at least one, each once")
    crossings = tuple(search(lambda number, seed=seed: is_met(number, seed)) for seed in seeds)  # type: ignore[misc]
    values = [each.value for each in crossings]
    mean = fmean(values)
    if len(values) == 1:
        half = math.inf
    else:
        half = student_t(confidence, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half, confidence, crossings)


def student_t(confidence: float, degrees: int) -> float:
    """The two-sided quantile of Student's t: half the width of an interval, in standard errors.

    Exact for one and two degrees of freedom; beyond, the expansion of Hill (1970, Algorithm 396),
    right to four digits. Raises ConfigError outside ``0 < confidence < 1`` or for no degrees.
    """
    if not 0.0 < confidence < 1.0 or degrees < 1:
        raise ConfigError(f"confidence, degrees: {confidence}, {degrees} are no interval")
    tail = 1.0 - confidence
    if degrees == 1:
        return 1.0 / math.tan(tail * math.pi / 2)
    if degrees == 2:
        return math.sqrt(2.0 / (tail * (2.0 - tail)) - 2.0)
    n = float(degrees)
    a = 1.0 / (n - 0.5)
    b = 48.0 / (a * a)
    c = ((20700.0 * a / b - 98.0) * a - 16.0) * a + 96.36
    d = ((94.5 / (b + c) - 3.0) / b + 1.0) * math.sqrt(a * math.pi / 2) * n
    y = (d * tail) ** (2.0 / n)
    if y > 0.05 + a:
        x = NormalDist().inv_cdf(tail / 2)
        y = x * x
        if degrees < 5:
            c += 0.3 * (n - 4.5) * (x + 0.6)
        c += (((0.05 * d * x - 5.0) * x - 7.0) * x - 2.0) * x + b
        y = (((((0.4 * y + 6.3) * y + 36.0) * y + 94.5) / c - y - 3.0) / b + 1.0) * x
        y = math.expm1(a * y * y)
    else:
        y = ((1.0 / (((n + 6.0) / (n * y) - 0.089 * d - 0.822) * (n + 2.0) * 3.0) + 0.5 / (n + 4.0))
             * y - 1.0) * (n + 1.0) / (n + 2.0) + 1.0 / y  # fmt: skip
    return math.sqrt(n * y)
