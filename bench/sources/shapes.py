"""What a request is drawn from: counts and lengths by inverse distribution functions, how they
hang together, and the request that comes of them.

Everything is looked up by a number from 0 to 1, so that coupling is a matter of who shares one.
Knows no arrival process and no file.
"""

import math
import random
import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Literal, Protocol

import msgspec

from bench.sources.pictures import Pictures, content
from bench.workload import Arrival, Part, Text
from triptych.core.errors import ConfigError
from triptych.core.ids import TenantId

Coupling = Literal["independent", "input", "comonotone"]
"""Of one request's number of pictures, tokens of a picture, text and output. ``independent``: each
is drawn by itself. ``input``: the first three have the same rank, so that a long text has many
large pictures; the output is drawn by itself. ``comonotone``: all have the same rank, which makes
the spread of a request's work as large as these distributions allow (Fréchet's upper bound)."""

PUBLIC = TenantId("public")
_COUNT = re.compile(r"\d+(\.\d+)?")


class Draw(Protocol):
    """A distribution of whole numbers."""

    @property
    def mean(self) -> float:
        """Expected value."""
        ...

    def at(self, rank: float) -> int:
        """The value that a share ``rank`` (0 <= rank < 1) of all lies at or below."""
        ...


class Pmf:
    """Values with probabilities."""

    def __init__(self, weights: Mapping[int, float]) -> None:
        """``weights`` need not sum to 1. Raises ConfigError if they are empty or negative."""
        total = math.fsum(weights.values())
        if total <= 0 or min(weights.values()) < 0:
            raise ConfigError("probabilities: at least one above 0, none below")
        self._values = [value for value in sorted(weights) if weights[value]]
        sums = list(accumulate(weights[value] / total for value in self._values))
        self._bounds = sums[:-1]
        self.mean = sum(value * weight for value, weight in weights.items()) / total

    def at(self, rank: float) -> int:
        """By bisection."""
        return self._values[bisect_right(self._bounds, rank)]


class Quantiles:
    """Values known at some ranks, straight lines between them, flat outside."""

    def __init__(self, points: Iterable[tuple[float, float]]) -> None:
        """``points``: (rank in percent, value), both rising. Raises ConfigError."""
        table = list(points)
        if len(table) < 2 or any(a >= c or b > d for (a, b), (c, d) in pairwise(table)):
            raise ConfigError("quantiles: at least two, rising")
        self._ranks = [rank / 100 for rank, _ in table]
        self._values = [value for _, value in table]
        low, high = self._ranks[0], self._ranks[-1]
        inner = sum((c - a) / 100 * (b + d) / 2 for (a, b), (c, d) in pairwise(table))
        self.mean = inner + low * self._values[0] + (1 - high) * self._values[-1]

    def at(self, rank: float) -> int:
        """The nearest whole number."""
        ranks, values = self._ranks, self._values
        index = bisect_right(ranks, rank)
        if index == 0:
            return round(values[0])
        if index == len(ranks):
            return round(values[-1])
        share = (rank - ranks[index - 1]) / (ranks[index] - ranks[index - 1])
        return round(values[index - 1] + share * (values[index] - values[index - 1]))


class Geometric:
    """1, 2, ...: each one more is as likely as the one before was."""

    def __init__(self, mean: float) -> None:
        """Raises ConfigError if ``mean`` is not above 1."""
        if mean <= 1:
            raise ConfigError("a geometric mean is above 1")
        self.mean = mean
        self._log = math.log1p(-1 / mean)

    def at(self, rank: float) -> int:
        """In closed form."""
        return 1 + int(math.log1p(-rank) / self._log)


def amount(text: str, field: str) -> Draw:
    """``7``: always 7. ``0.3``: 0 or 1, 0.3 on average. ``4-8``: each of these equally likely.
    ``~5``: geometric with mean 5. Raises ConfigError that names ``field``."""
    body = text.removeprefix("~")
    low, dash, high = body.partition("-")
    numbers = (low, high) if dash else (low,)
    if not all(_COUNT.fullmatch(number) for number in numbers) or (dash and body != text):
        raise ConfigError(f"{field}: {text!r} is not like 7, 0.3, 4-8 or ~5")
    try:
        if text.startswith("~"):
            return Geometric(float(body))
        if dash:
            return Pmf(dict.fromkeys(range(int(low), int(high) + 1), 1.0))
        whole, part = divmod(float(body), 1.0)
        return Pmf({int(whole): 1 - part, int(whole) + 1: part})
    except (ConfigError, ValueError) as error:
        raise ConfigError(f"{field}: {text!r}: {error}") from None


class Shape(msgspec.Struct, frozen=True):
    """What the requests of one kind are drawn from."""

    images: Draw
    tokens: Draw
    """Of one picture."""
    text: Draw
    output: Draw
    size: tuple[int, int] | None = None
    """(width, height) of every picture in pixels, instead of ``tokens``."""
    prefix: tuple[Text, ...] = ()
    """What every prompt begins with."""
    is_total: bool = False
    """``text`` counts the pictures' tokens too."""


class Requests:
    """Makes requests, one after another, of one stream of random numbers."""

    def __init__(self, source: random.Random, coupling: Coupling, pictures: Pictures) -> None:
        self._source = source
        self._coupling = coupling
        self._pictures = pictures

    def make(
        self, at_s: float, shape: Shape, tenant: TenantId = PUBLIC, slo: str = "interactive"
    ) -> Arrival:
        """One request: the prefix, its pictures, then its text, of one token at least."""
        parts, num_output = self.turn(shape)
        source = self._source
        return Arrival(
            at_s,
            (*shape.prefix, *parts),
            num_output,
            answer=content(source),
            tenant=tenant,
            slo=slo,
        )

    def turn(self, shape: Shape) -> tuple[list[Part], int]:
        """Pictures and text of a question, and the length of its answer."""
        draw = self._source.random
        is_free = self._coupling == "independent"
        rank = draw()
        text = draw() if is_free else rank
        output = rank if self._coupling == "comonotone" else draw()
        parts: list[Part] = []
        num_text = shape.text.at(text)
        for _ in range(shape.images.at(rank)):
            if shape.size is not None:
                image = self._pictures.sized(*shape.size)
            else:
                tokens = shape.tokens.at(draw() if is_free else rank)
                image = self._pictures.draw(max(1, tokens))
            parts.append(image)
            if shape.is_total:
                num_text -= image.num_tokens
        parts.append(Text(content(self._source), max(1, num_text)))
        return parts, max(1, shape.output.at(output))


def quantiles(text: str) -> Quantiles:
    """Of ``50:94 90:1913``: rank in percent, value."""
    pairs = (pair.split(":") for pair in text.split())
    return Quantiles((float(rank), float(value)) for rank, value in pairs)


def steps(cumulative: Sequence[tuple[int, float]]) -> Pmf:
    """Of a distribution function in percent that rises in steps, read off a plot: what is missing
    at its end is shared out over all values in proportion."""
    before = 0.0
    weights: dict[int, float] = {}
    for value, percent in cumulative:
        if percent > before:
            weights[value], before = percent - before, percent
    return Pmf(weights)
