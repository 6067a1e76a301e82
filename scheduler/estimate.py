"""A linear model that learns as it is used: seconds as a sum of weights times counts.

Least squares over relative errors with exponential forgetting and weights that are never negative,
so that more work is never predicted to take less time. Knows numbers only.
"""

from collections.abc import Sequence

FORGET = 0.98
"""What an observation counts for after the next one: the last fifty make the model."""
RIDGE = 0.01
"""Of one observation: how much the prior holds what was never excited."""
SWEEPS = 4
"""Of coordinate descent after each observation; the last solution is a warm start."""
WEIGHT = 0.1
"""Of the newest error in the means."""
MOST_OFF = 10.0
"""A relative error counts as no more: one step that waited for a page is no reason to despair."""


class Error:
    """How predictions compared with what was seen: a running mean of relative errors."""

    def __init__(self) -> None:
        self.count = 0
        self.mape = 0.0
        """Mean of ``|predicted - seen| / seen``."""
        self.bias = 0.0
        """Mean of ``(predicted - seen) / seen``: above 0 where too much is predicted."""

    def learn(self, predicted: float, seen: float) -> None:
        """A prediction and its outcome; nothing where nothing was to be seen."""
        if seen <= 0.0:
            return
        off = max(-MOST_OFF, min(MOST_OFF, (predicted - seen) / seen))
        weight = max(WEIGHT, 1.0 / (self.count + 1))
        self.count += 1
        self.mape += weight * (abs(off) - self.mape)
        self.bias += weight * (off - self.bias)


class Estimate:
    """Weights of one linear model.

    Works in units of the prior's weights, so that features of any scale are alike: with
    ``z = x * prior / y`` it minimises ``sum(FORGET**age * (w.z - 1)**2) + RIDGE * |w - 1|**2``.
    """

    def __init__(self, prior: Sequence[float]) -> None:
        """``prior``: seconds per unit of each feature, all above 0."""
        size = len(prior)
        self._prior = tuple(prior)
        self._scaled = [1.0] * size
        self._moments = [[0.0] * size for _ in range(size)]
        self._targets = [0.0] * size
        self.count = 0
        """Observations so far."""
        self.weights = tuple(prior)
        """Seconds per unit of each feature; never negative."""
        self.error = Error()
        """Of predictions made before each outcome was learnt."""

    def seconds(self, features: Sequence[float]) -> float:
        """What the model says of ``features``."""
        return sum(w * x for w, x in zip(self.weights, features, strict=True))

    def learn(self, features: Sequence[float], seconds: float) -> None:
        """``features`` took ``seconds``. Ignores what took no time."""
        if seconds <= 0.0 or not any(features):
            return
        self.error.learn(self.seconds(features), seconds)
        self.count += 1
        scaled = [x * p / seconds for x, p in zip(features, self._prior, strict=True)]
        for i, z in enumerate(scaled):
            row = self._moments[i]
            for j, other in enumerate(scaled):
                row[j] = FORGET * row[j] + z * other
            self._targets[i] = FORGET * self._targets[i] + z
        self._solve()

    def _solve(self) -> None:
        """Projected coordinate descent on the normal equations."""
        found = self._scaled
        for _ in range(SWEEPS):
            for i, row in enumerate(self._moments):
                rest = sum(each * w for each, w in zip(row, found, strict=True)) - row[i] * found[i]
                gain = self._targets[i] + RIDGE - rest
                found[i] = max(0.0, gain / (row[i] + RIDGE))
        self.weights = tuple(w * p for w, p in zip(found, self._prior, strict=True))
