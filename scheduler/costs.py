"""What computing takes: seconds of a step, by what is in it. The one interface between everything
that predicts time (policies, planner, simulated executors) and everything that knows it (profiles,
measured kernel tables, published coefficients).

Knows counts of tokens; no engine, no queue, no hardware.
"""

from collections.abc import Sequence
from typing import Protocol


class Costs(Protocol):
    """Seconds on one instance. Pure; all counts >= 0."""

    def vision_s(self, pictures: Sequence[int]) -> float:
        """A step that encodes pictures of so many visual tokens each (after merging)."""
        ...

    def language_s(
        self, chunks: Sequence[tuple[int, int]], num_decodes: int, context: int
    ) -> float:
        """A step that computes chunks ``(prefix, length)``: ``length`` tokens that attend to
        themselves and ``prefix`` earlier ones; and one token of each of ``num_decodes`` sequences
        with ``context`` cached tokens in all."""
        ...

    def decode_run_s(self, num_decodes: int, context: int, steps: int) -> float:
        """``steps`` steps in a row of the same decodes and nothing else, ``context`` before the
        first: the sum of ``language_s((), num_decodes, context + i * num_decodes)`` for ``i`` in
        ``range(steps)``, in constant time."""
        ...
