"""What steps cost where nobody measured: straight lines, a small GPU's order of magnitude.

Implements ``Costs``. Good for comparing two pieces of work; not for promises.
"""

from collections.abc import Sequence

import msgspec


class Prior(msgspec.Struct, frozen=True):
    """Seconds of a step: a start, and a share for each token and each token attended to. A step of
    nothing takes no time."""

    vision_step_s: float = 5e-3
    vision_token_s: float = 1e-4
    step_s: float = 1e-2
    token_s: float = 1e-4
    """Of prefill: computed, not bound by memory."""
    decode_s: float = 5e-5
    """Of each decode."""
    pair_s: float = 1e-9
    """For each pair of tokens of which one attends to the other in a chunk."""
    context_s: float = 2e-9
    """For each cached token that a decode reads."""

    def vision_s(self, pictures: Sequence[int]) -> float:
        """A step that encodes pictures of so many visual tokens each."""
        return self.vision_step_s + self.vision_token_s * sum(pictures) if pictures else 0.0

    def language_s(
        self, chunks: Sequence[tuple[int, int]], num_decodes: int, context: int
    ) -> float:
        """A step that computes chunks ``(prefix, length)`` and a token of each decode."""
        if not chunks and not num_decodes:
            return 0.0
        pairs = sum(length * (prefix + (length + 1) / 2) for prefix, length in chunks)
        tokens = sum(length for _, length in chunks)
        computed_s = self.token_s * tokens + self.pair_s * pairs
        return self.step_s + computed_s + self.decode_s * num_decodes + self.context_s * context

    def decode_run_s(self, num_decodes: int, context: int, steps: int) -> float:
        """``steps`` steps in a row of the same decodes: an arithmetic series."""
        if not num_decodes or steps <= 0:
            return 0.0
        first_s = self.language_s((), num_decodes, context)
        return steps * first_s + self.context_s * num_decodes * steps * (steps - 1) / 2


PRIOR = Prior()
