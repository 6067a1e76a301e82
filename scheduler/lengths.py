"""How long an answer will be, learned from those that ended: by tenant and class, in buckets.

ShuffleInfer (arXiv 2401.11181) predicts a bucket of 200 tokens with a small language model; here a
histogram with decay does, which needs no model and follows the load. Knows counts; no text.
"""

from collections.abc import Iterator
from itertools import accumulate
from math import log2

from triptych.core.ids import TenantId

BUCKET_TOKENS = 200
NUM_BUCKETS = 41
"""Up to 8,000 tokens one by one; the last takes what is longer."""
DECAY = 0.98
"""Of what was seen, for each newer answer of the same class: the last fifty count."""
LARGEST_UNIT = 1e9
FEWEST = 8.0
"""Weight of answers below which a class is mixed with the wider one around it."""
PRIOR_EXPECTED = 0.5
"""Of ``max_tokens``, where no answer was seen."""

Class = tuple[str, int, int]
"""Tenant (empty: all), size of the prompt (-1: any), whether there are pictures (-1: any)."""


class _Seen:
    """Answers of one class: weight and tokens by bucket, in units of the newest answer's weight.
    Instead of all before it, the unit changes."""

    def __init__(self) -> None:
        self.weights = [0.0] * NUM_BUCKETS
        self.tokens = [0.0] * NUM_BUCKETS
        self.unit = 1.0

    def add(self, num_output: int) -> None:
        self.unit /= DECAY
        if self.unit > LARGEST_UNIT:
            self.weights = [each / self.unit for each in self.weights]
            self.tokens = [each / self.unit for each in self.tokens]
            self.unit = 1.0
        bucket = min(num_output // BUCKET_TOKENS, NUM_BUCKETS - 1)
        self.weights[bucket] += self.unit
        self.tokens[bucket] += self.unit * num_output


class Lengths:
    """What was seen so far. Changed by ``learn``; ``predict`` is pure. Deterministic."""

    def __init__(self) -> None:
        self._seen: dict[Class, _Seen] = {}

    def learn(self, tenant: TenantId, prompt_tokens: int, num_images: int, num_output: int) -> None:
        """An answer ended by itself after ``num_output`` tokens (not cancelled, not failed; cut at
        ``max_tokens`` counts as what it was)."""
        for each in _classes(tenant, prompt_tokens, num_images):
            self._seen.setdefault(each, _Seen()).add(num_output)

    def predict(
        self, tenant: TenantId, prompt_tokens: int, num_images: int, max_tokens: int
    ) -> tuple[int, int]:
        """Expected tokens, and a number that nine of ten answers do not exceed (the upper end of
        their bucket); 1 <= expected <= p90 <= ``max_tokens``."""
        weights, tokens = self._mixed(tenant, prompt_tokens, num_images)
        total = sum(weights)
        if total <= 0.0:
            return max(1, round(PRIOR_EXPECTED * max_tokens)), max(1, max_tokens)
        expected = 0.0
        for weight, count in zip(weights, tokens, strict=True):
            if weight:
                expected += weight * min(count / weight, max_tokens)
        sums = accumulate(weights)
        bucket = next(i for i, each in enumerate(sums) if each >= 0.9 * total)
        p90 = max_tokens
        if bucket < NUM_BUCKETS - 1:
            p90 = min(max_tokens, (bucket + 1) * BUCKET_TOKENS)
        p90 = max(1, p90)
        return min(p90, max(1, round(expected / total))), p90

    def _mixed(
        self, tenant: TenantId, prompt_tokens: int, num_images: int
    ) -> tuple[list[float], list[float]]:
        """The narrowest class, filled up to ``FEWEST`` by the wider ones around it."""
        weights, tokens = [0.0] * NUM_BUCKETS, [0.0] * NUM_BUCKETS
        missing = FEWEST
        for each in _classes(tenant, prompt_tokens, num_images):
            seen = self._seen.get(each)
            if seen is None or missing <= 0.0:
                continue
            have = sum(seen.weights) / seen.unit
            share = 1.0 if missing == FEWEST else min(1.0, missing / have)
            share /= seen.unit
            for index in range(NUM_BUCKETS):
                weights[index] += share * seen.weights[index]
                tokens[index] += share * seen.tokens[index]
            missing -= have
        return weights, tokens


def _classes(tenant: TenantId, prompt_tokens: int, num_images: int) -> Iterator[Class]:
    """From the narrowest to the widest."""
    size, has_images = int(log2(max(prompt_tokens, 1))), int(num_images > 0)
    yield tenant, size, has_images
    yield tenant, -1, has_images
    yield "", -1, has_images
    yield "", -1, -1
