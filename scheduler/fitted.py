"""Seconds of a step by lines and curves: what fits of kernel tables and of step logs result in.

Implements ``Costs``. Knows tokens, attended pairs and their seconds; not where they were measured.
Each part keeps the error with which it was fitted beside it.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence

import msgspec

from scheduler.curves import Curve
from triptych.core.errors import ConfigError


class FitError(msgspec.Struct, frozen=True):
    """Relative errors ``|fitted / measured - 1|`` over ``num_points`` measurements."""

    num_points: int
    mean: float
    p50: float
    p99: float
    max: float
    bias: float = 0.0
    """Mean of ``fitted / measured - 1``: above 0 where too slow is predicted."""


def fit_error(pairs: Iterable[tuple[float, float]]) -> FitError:
    """Of ``(fitted, measured)`` seconds, measured > 0; percentiles are nearest ranks."""
    signed = [fitted / measured - 1.0 for fitted, measured in pairs]
    if not signed:
        return FitError(0, 0.0, 0.0, 0.0, 0.0)
    errors, last = sorted(map(abs, signed)), len(signed) - 1
    p50, p99, most = (errors[round(share * last)] for share in (0.5, 0.99, 1.0))
    count = len(errors)
    return FitError(count, sum(errors) / count, p50, p99, most, sum(signed) / count)


class Attention(msgspec.Struct, frozen=True):
    """Seconds of one launch over whole sequences, by its work: the sum over them of query rows,
    rounded up to ``tile`` as kernels do, times keys per row plus ``extra_keys``.

    ``extra_keys`` is what a row costs besides its keys (reading it, writing it, the half-used tile
    on the diagonal), in keys.
    """

    tile: int = 1
    extra_keys: float = 0.0
    seconds: Curve = Curve()

    def work(self, rows: int, keys: float) -> float:
        """Of a sequence with ``rows`` queries that attend to ``keys`` keys each, in the mean."""
        return -(-rows // self.tile) * self.tile * (keys + self.extra_keys)


class DecodeAttention(msgspec.Struct, frozen=True):
    """Seconds by sequences and total context: a curve by context for each measured batch, and
    straight lines between batches at equal total context."""

    batches: tuple[int, ...] = ()
    seconds: tuple[Curve, ...] = ()

    def __post_init__(self) -> None:
        if len(self.batches) != len(self.seconds):
            raise ConfigError("decode attention: one curve for each batch")

    def at(self, batch: int, context: float) -> float:
        """Of one step over ``context`` >= 0 tokens in all. Beyond the measured batches the largest
        one's curve, in proportion."""
        batches, curves = self.batches, self.seconds
        right = bisect_right(batches, batch)
        if right and right < len(batches):
            low = batches[right - 1]
            below = curves[right - 1].at(context)
            if low == batch:
                return below
            share = (batch - low) / (batches[right] - low)
            return below + share * (curves[right].at(context) - below)
        if not batches:
            return 0.0
        scale = max(1.0, batch / batches[-1])
        return scale * curves[max(0, right - 1)].at(context / scale)

    def total(self, batch: int, context: float, steps: int) -> float:
        """The sum of ``at(batch, context + i * batch)`` for ``i`` in ``range(steps)``."""
        batches, curves = self.batches, self.seconds
        right = bisect_right(batches, batch)
        if right and right < len(batches):
            share = (batch - batches[right - 1]) / (batches[right] - batches[right - 1])
            below = curves[right - 1].total(context, batch, steps)
            above = curves[right].total(context, batch, steps) if share else below
            return below + share * (above - below)
        if not batches:
            return 0.0
        scale = max(1.0, batch / batches[-1])
        return scale * curves[max(0, right - 1)].total(context / scale, batch / scale, steps)


class Fitted(msgspec.Struct, frozen=True, kw_only=True, tag="fitted"):
    """``Costs`` as a sum of parts. A step of nothing takes no time."""

    step_s: float = 0.0
    """Per language step, whatever is in it: launches, scheduling, sampling."""
    chunk_step_s: float = 0.0
    """Per language step with a chunk, more: steps of decodes alone are recorded or captured, others
    are computed call by call, ..."""
    beside_s: float = 0.0
    """... and so is each decode beside a chunk."""
    sequence_s: float = 0.0
    """Per sequence in a language step: its rows of the batch, its token on the way out."""
    linear: Curve = Curve()
    """By tokens in the step: all layers' products and what else passes over every token."""
    draws: Curve = Curve()
    """By sequences: the product with the vocabulary."""
    chunk_attention: Attention = Attention()
    decode_attention: DecodeAttention = DecodeAttention()
    vision_step_s: float = 0.0
    vision_linear: Curve = Curve()
    """By visual tokens (after merging) in the step; attention within windows is in it."""
    vision_attention: Attention = Attention()
    """Over whole pictures, in visual tokens. Where only parts of a picture attend to each other
    (tiles, windows) there is none and ``vision_linear`` has it all."""
    vision_ranks: int = 1
    """Copies of the encoder on the instance's devices; pictures are spread over them."""
    errors: dict[str, FitError] = {}
    """By part."""

    def vision_s(self, pictures: Sequence[int]) -> float:
        """A step that encodes pictures of so many visual tokens each: the slowest rank's share."""
        if not pictures:
            return 0.0
        if self.vision_ranks == 1:
            return self.vision_step_s + self._encode_s(pictures)
        ranks: list[list[int]] = [[] for _ in range(min(self.vision_ranks, len(pictures)))]
        loads = [0] * len(ranks)
        for tokens in sorted(pictures, reverse=True):
            least = loads.index(min(loads))
            ranks[least].append(tokens)
            loads[least] += tokens
        return self.vision_step_s + max(map(self._encode_s, ranks))

    def language_s(
        self, chunks: Sequence[tuple[int, int]], num_decodes: int, context: int
    ) -> float:
        """A step that computes chunks ``(prefix, length)`` and one token of each decode."""
        num_sequences = len(chunks) + num_decodes
        if not num_sequences:
            return 0.0
        tokens, work = num_decodes, 0.0
        attention = self.chunk_attention
        for prefix, length in chunks:
            tokens += length
            work += attention.work(length, prefix + (length + 1) / 2.0)
        seconds = self._step_s(tokens, num_sequences)
        if chunks:
            seconds += self.chunk_step_s + self.beside_s * num_decodes
            seconds += attention.seconds.at(work)
        if num_decodes:
            seconds += self.decode_attention.at(num_decodes, context + num_decodes)
        return seconds

    def decode_run_s(self, num_decodes: int, context: int, steps: int) -> float:
        """``steps`` steps in a row of the same decodes and nothing else."""
        if not num_decodes or steps <= 0:
            return 0.0
        attention = self.decode_attention.total(num_decodes, context + num_decodes, steps)
        return steps * self._step_s(num_decodes, num_decodes) + attention

    def _step_s(self, tokens: int, num_sequences: int) -> float:
        fixed = self.step_s + self.sequence_s * num_sequences
        return fixed + self.linear.at(tokens) + self.draws.at(num_sequences)

    def _encode_s(self, pictures: Sequence[int]) -> float:
        seconds, attention = self.vision_linear.at(sum(pictures)), self.vision_attention
        if attention.seconds.xs:
            work = sum(attention.work(tokens, tokens) for tokens in pictures)
            seconds += attention.seconds.at(work)
        return seconds
