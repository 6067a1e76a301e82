"""How large a decode batch becomes and how long a token takes, interrupted by other work.

Little's law and the time of a step determine each other: a longer step keeps sequences longer, and
more sequences make a longer step. Knows steps and rates; no SLO, no layout.
"""

import math
from bisect import bisect_right

import msgspec

from scheduler.costs import Costs
from scheduler.planner.demand import Moments


class Steps:
    """Seconds of steps by batch, for sequences of one mean context: asked once at sizes that grow
    by about half, linear between (costs are nearly so), because estimates ask very often."""

    def __init__(
        self, costs: Costs, context: float, chunk: tuple[int, int], max_decodes: int
    ) -> None:
        sizes = {max_decodes}
        size = 1
        while size < max_decodes:
            sizes.update((size, min(max_decodes, size + size // 2)))
            size *= 2
        self._sizes = sorted(sizes)
        cached = [round(size * context) for size in self._sizes]
        pairs = list(zip(self._sizes, cached, strict=True))
        bare = costs.language_s((chunk,), 0, 0)
        self._alone = [costs.language_s((), size, held) for size, held in pairs]
        self._beside = [costs.language_s((chunk,), size, held) - bare for size, held in pairs]
        self.max_decodes = max_decodes

    def alone_s(self, batch: float) -> float:
        """A step of decodes only. Below one sequence, that of one."""
        return self._at(self._alone, batch)

    def beside_s(self, batch: float) -> float:
        """What the same decodes add to a step that computes a chunk of prefill (Sarathi-Serve)."""
        return max(0.0, self._at(self._beside, batch)) * min(1.0, batch)

    def slope_s(self, batch: float) -> float:
        """Seconds that one more sequence adds to a step of decodes only."""
        return max(0.0, self.alone_s(batch + 1.0) - self.alone_s(batch))

    def largest(self, step_s: float) -> int:
        """The largest batch whose step takes at most ``step_s`` (TriInfer's budget search, MLSys
        2026); at least 1."""
        low, high = 1, self.max_decodes
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.alone_s(middle) <= step_s else (low, middle - 1)
        return low

    def _at(self, values: list[float], batch: float) -> float:
        sizes = self._sizes
        place = min(max(bisect_right(sizes, batch), 1), len(sizes) - 1)
        if len(sizes) == 1 or batch <= sizes[0]:
            return values[0]
        left, right = sizes[place - 1], sizes[place]
        share = (batch - left) / (right - left)
        return values[place - 1] + share * (values[place] - values[place - 1])


class Interruptions(msgspec.Struct, frozen=True):
    """Work of other stages on the same instance. Per second: so many requests bring such work."""

    encode_rate: float = 0.0
    encode: Moments = Moments()
    """Seconds of a request's pictures."""
    prefill_rate: float = 0.0
    prefill: Moments = Moments()
    """Seconds of a request's chunks, alone."""
    chunks: Moments = Moments()
    """Number of a request's chunks."""
    prefill_chunks: float = 0.0
    """Mean of seconds times chunks of a request."""

    def extra(self, gain_s: float) -> tuple[float, float]:
        """Share of the time they take, and the mean square of their seconds per second, where each
        chunk of prefill carries a decode step that would have taken ``gain_s`` more by itself."""
        mean = self.prefill.mean - gain_s * self.chunks.mean
        square = (
            self.prefill.second
            - 2.0 * gain_s * self.prefill_chunks
            + gain_s**2 * self.chunks.second
        )
        load = self.encode_rate * self.encode.mean + self.prefill_rate * max(0.0, mean)
        return load, self.encode_rate * self.encode.second + self.prefill_rate * max(0.0, square)


class Decoding(msgspec.Struct, frozen=True):
    """The settled state of one decode instance."""

    batch: float
    """Mean number of decoding sequences; ``inf`` if it does not settle below the limit."""
    step_s: float
    """Of decodes only."""
    token_s: float
    """Mean gap between tokens, interruptions included."""
    load: float
    """Share of the time that interruptions take."""
    scatter_s: float
    """Variance that interruptions add to the time of an answer, seconds squared per second of
    undisturbed decoding."""


def settle(steps: Steps, token_rate: float, others: Interruptions, limit: float) -> Decoding:
    """The batch that ``token_rate`` tokens per second keep, and what a token takes in it.

    The least solution of ``batch = token_rate * step(batch) / (1 - load(batch))``, from below. An
    answer under interruptions is a delay busy period (Kleinrock, Queueing Systems I, section 5.10):
    mean ``t / (1 - load)``, variance ``t * rate * E[x^2] / (1 - load)^3`` for ``t`` seconds of
    undisturbed steps and interruptions of ``x`` seconds.
    """
    batch = 0.0
    for _ in range(200):
        step_s = steps.alone_s(batch)
        load, square = others.extra(step_s - steps.beside_s(batch))
        if load >= 1.0:
            break
        token_s = step_s / (1.0 - load)
        needed = token_rate * token_s
        if needed > limit:
            break
        if needed - batch <= 1e-3 + 1e-4 * needed:
            return Decoding(needed, step_s, token_s, load, square / (1.0 - load) ** 3)
        batch = needed
    return Decoding(math.inf, steps.alone_s(limit), math.inf, 1.0, math.inf)
