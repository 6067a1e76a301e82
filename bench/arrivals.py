"""When requests arrive: seconds after the start, in order. Pure functions of their arguments.

Open loop: arrivals do not wait for answers, as clients do not wait for each other. A stream is a
renewal process (``Gaps``) on a clock that runs as fast as the rate of the moment (``Rates``), so
that any spread of gaps goes with any rate over time; or it is a trace's own times (``replay``).
"""

import math
import random
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Protocol

import msgspec

from triptych.core.errors import ConfigError

FAMILIES = ("poisson", "gamma", "weibull", "uniform")
"""Names of ``gaps``."""


class Gaps(Protocol):
    """Times between arrivals in units of their mean: a renewal process."""

    def first(self, source: random.Random) -> float:
        """Until the first arrival of a process that has always run (Cox, *Renewal Theory*, 1962:
        the gap that covers a moment is drawn in proportion to its length). Started with a whole
        gap instead, bursty processes would offer (cv² - 1) / 2 requests too many."""
        ...

    def next(self, source: random.Random) -> float:
        """From one arrival to the next; 1 on average."""
        ...


class Uniform(msgspec.Struct, frozen=True):
    """Equal gaps, the first arrival at once."""

    def first(self, source: random.Random) -> float:  # noqa: ARG002
        """0."""
        return 0.0

    def next(self, source: random.Random) -> float:  # noqa: ARG002
        """1."""
        return 1.0


class Poisson(msgspec.Struct, frozen=True):
    """Exponential gaps."""

    def first(self, source: random.Random) -> float:
        """Like any other: the process has no memory."""
        return source.expovariate(1.0)

    def next(self, source: random.Random) -> float:
        """Exponential."""
        return source.expovariate(1.0)


class Gamma(msgspec.Struct, frozen=True):
    """Gaps of a Gamma distribution; ``shape`` is 1 / cv², burstier the smaller it is."""

    shape: float

    def __post_init__(self) -> None:
        _check_shape(self.shape)

    def first(self, source: random.Random) -> float:
        """Drawn by length: of shape + 1."""
        return source.random() * source.gammavariate(self.shape + 1, 1 / self.shape)

    def next(self, source: random.Random) -> float:
        """Gamma."""
        return source.gammavariate(self.shape, 1 / self.shape)


class Weibull(msgspec.Struct, frozen=True):
    """Gaps of a Weibull distribution, burstier than Poisson where ``shape`` is below 1."""

    shape: float

    def __post_init__(self) -> None:
        _check_shape(self.shape)

    def first(self, source: random.Random) -> float:
        """Drawn by length: (x / scale)^shape is Gamma of 1 + 1/shape."""
        power = source.gammavariate(1 + 1 / self.shape, 1.0)
        return source.random() * self._scale * float(power ** (1 / self.shape))

    def next(self, source: random.Random) -> float:
        """Weibull."""
        return source.weibullvariate(self._scale, self.shape)

    @property
    def _scale(self) -> float:
        return 1 / math.gamma(1 + 1 / self.shape)


class Piece(msgspec.Struct, frozen=True):
    """A stretch of time with one rate and one kind of gaps."""

    start_s: float
    end_s: float
    rate: float
    gaps: Gaps


class Rates(msgspec.Struct, frozen=True):
    """Requests per second over time: each step holds until the next one."""

    steps: tuple[tuple[float, float], ...]
    """(from when in seconds, rate), in order, the first from 0."""
    period_s: float = math.inf
    """All of it again after so long."""

    def __post_init__(self) -> None:
        starts = [start for start, _ in self.steps]
        if not starts or starts[0] != 0 or starts != sorted(set(starts)):
            raise ConfigError("rates: steps begin at 0 and follow each other")
        if any(rate < 0 or not math.isfinite(rate) for _, rate in self.steps):
            raise ConfigError("rates: at least 0 per second")
        if self.period_s <= starts[-1]:
            raise ConfigError("period_s: longer than the start of the last step")

    def pieces(self, duration_s: float, start_s: float = 0.0) -> Iterator[tuple[float, float, int]]:
        """(from, to, index of the step) from ``start_s`` on, counted from there."""
        ends = [start for start, _ in self.steps[1:]] + [self.period_s]
        lap = start_s // self.period_s if math.isfinite(self.period_s) else 0.0
        begin = lap * self.period_s if lap else 0.0
        while begin < start_s + duration_s:
            for index, (start, _) in enumerate(self.steps):
                low = max(begin + start - start_s, 0.0)
                high = min(begin + ends[index] - start_s, duration_s)
                if low < high:
                    yield low, high, index
            begin += self.period_s

    def mean(self, duration_s: float, start_s: float = 0.0) -> float:
        """Requests per second on average."""
        pieces = self.pieces(duration_s, start_s)
        total = sum((end - start) * self.steps[index][1] for start, end, index in pieces)
        return total / duration_s if duration_s else 0.0

    def scaled(self, factor: float) -> "Rates":
        """All rates times ``factor``."""
        return Rates(tuple((start, rate * factor) for start, rate in self.steps), self.period_s)


def gaps(family: str, cv: float | None = None, shape: float | None = None) -> Gaps:
    """The process of a name of ``FAMILIES``; a Gamma by its coefficient of variation ``cv`` or its
    shape, a Weibull by its shape. Raises ConfigError."""
    if family not in FAMILIES:
        raise ConfigError(f"arrivals: {family!r} is none of {', '.join(FAMILIES)}")
    takes = {"gamma": ("cv", "shape"), "weibull": ("shape",)}.get(family, ())
    for name, value in (("cv", cv), ("shape", shape)):
        if value is not None and name not in takes:
            raise ConfigError(f"{name}: not an option of {family}")
    if cv is not None and (shape is not None or not 0.01 <= cv <= 100):
        raise ConfigError("cv: from 0.01 to 100, and not beside a shape")
    if family == "gamma":
        return Gamma(shape if shape is not None else (cv or 1.0) ** -2)
    if family == "weibull":
        return Weibull(shape if shape is not None else 1.0)
    return Poisson() if family == "poisson" else Uniform()


def times(
    process: Gaps, rates: Rates, duration_s: float, source: random.Random, batch: int = 1
) -> Iterator[float]:
    """Arrivals of ``process`` at ``rates``, within ``duration_s``; ``batch`` of them at once each
    time, as many per second as without."""
    steps = rates.steps
    pieces = (
        Piece(start, end, steps[index][1], process)
        for start, end, index in rates.pieces(duration_s)
    )
    return flow(pieces, source, batch)


def flow(pieces: Iterable[Piece], source: random.Random, batch: int = 1) -> Iterator[float]:
    """Arrivals of pieces that follow each other. A gap that begins in one piece ends in a later
    one, at that one's rate: what runs is the number of arrivals expected so far, and with Poisson
    gaps this is the inhomogeneous Poisson process exactly."""
    due: float | None = None
    done = 0.0
    for piece in pieces:
        rate, draw = piece.rate, piece.gaps.next
        if rate <= 0:
            continue
        if due is None:
            due = piece.gaps.first(source) * batch
        end = done + rate * (piece.end_s - piece.start_s)
        while due < end:
            at_s = min(piece.start_s + (due - done) / rate, piece.end_s)
            for _ in range(batch):
                yield at_s
            due += draw(source) * batch
        done = end


def replay(
    trace: Sequence[float], rate: float | None, duration_s: float, start_s: float = 0.0
) -> Iterator[tuple[int, float]]:
    """(index, seconds) of a trace's arrivals from ``start_s`` of its time on. Without ``rate`` at
    its own times; with it, exactly the next ``rate * duration_s`` of them, their spacing stretched
    or squeezed evenly so that they fill ``duration_s``. The trace begins anew after its last
    arrival; the index counts on, so that ``divmod(index, len(trace))`` says lap and row.
    """
    count = len(trace)
    span = trace[-1] - trace[0]
    period = span * count / (count - 1) if span > 0 else max(count, 1)

    def at(index: int) -> float:
        lap, row = divmod(index, count)
        return trace[row] - trace[0] + lap * period

    lap, rest = divmod(start_s, period)
    index = int(lap) * count + bisect_left(trace, trace[0] + rest)
    if rate is None:
        while (time_s := at(index) - start_s) < duration_s:
            yield index, time_s
            index += 1
        return
    number = round(rate * duration_s)
    length = at(index + number) - start_s
    factor = duration_s / length if length > 0 else 0.0
    for each in range(index, index + number):
        yield each, min((at(each) - start_s) * factor, duration_s)


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


def _check_shape(shape: float) -> None:
    if not 1e-4 <= shape <= 1e6:
        raise ConfigError("shape: from 0.0001 to 1,000,000")


def _check(count: int, rate: float) -> None:
    if count < 1:
        raise ValueError("count: at least one arrival")
    if rate <= 0:
        raise ValueError("rate: must be positive")
