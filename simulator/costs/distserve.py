"""DistServe's published coefficients as ``Costs``: OPT on A100-80G, text only.

Knows its formulas (Zhong et al. 2024, appendix A; as its simulator computes them) and nothing of
hardware. Its two engines are here: its own and the vLLM of its time.
"""

from collections.abc import Sequence

import msgspec

from scheduler.fitted import FitError
from triptych.core.errors import ConfigError

COMMIT = "LLMServe/DistServe 82831f1, simdistserve/estimators/profile_data"


class Regime(msgspec.Struct, frozen=True):
    """``start_s + context_s * context + sequence_s * batch``, a decode step."""

    start_s: float
    context_s: float
    sequence_s: float


class DistServe(msgspec.Struct, frozen=True, kw_only=True, tag="distserve"):
    """Seconds that one pipeline stage is busy with a step: the fitted seconds divided by ``pp``.
    A step leaves the last stage ``pp`` times that after it entered the first."""

    prefill_s: tuple[float, float, float]
    """Fixed, per token, per squared token."""
    small: Regime
    large: Regime
    """Of decode batches below, and from ``threshold`` on."""
    threshold: int
    pp: int = 1
    stage_s: float = 0.0
    """Added to each stage: the artifact has 1 ms per stage written down but not counted."""
    errors: dict[str, FitError] = {}
    """None published for the coefficients; of the simulated attainment the paper says under 2 %."""

    def vision_s(self, pictures: Sequence[int]) -> float:
        """Raises ConfigError if there is one: these models do not see."""
        if pictures:
            raise ConfigError("costs: DistServe's coefficients have no encoder")
        return 0.0

    def language_s(
        self, chunks: Sequence[tuple[int, int]], num_decodes: int, context: int
    ) -> float:
        """Prompts in full as fitted; a chunk after ``prefix`` tokens costs what it adds to the
        square. Chunks beside decodes cost both, which DistServe itself never runs."""
        seconds = 0.0
        if chunks:
            fixed, token, square = self.prefill_s
            tokens = sum(length for _, length in chunks)
            squares = sum(length * (length + 2 * prefix) for prefix, length in chunks)
            seconds += fixed + token * tokens + square * squares
        if num_decodes:
            decode = self._regime(num_decodes)
            seconds += decode.start_s + decode.context_s * context
            seconds += decode.sequence_s * num_decodes
        return seconds / self.pp + (self.stage_s if seconds else 0.0)

    def decode_run_s(self, num_decodes: int, context: int, steps: int) -> float:
        """``steps`` steps in a row of the same decodes: the regime depends on the batch alone."""
        if not num_decodes or steps <= 0:
            return 0.0
        grown = self._regime(num_decodes).context_s * num_decodes * (steps - 1) / 2.0
        return steps * (self.language_s((), num_decodes, context) + grown / self.pp)

    def _regime(self, batch: int) -> Regime:
        return self.small if batch < self.threshold else self.large


Published = dict[str, dict[str, dict[str, float | tuple[float, float, float]]]]
"""The artifact's file: model, tensor-parallel degree, coefficients in milliseconds."""


def read(published: Published) -> dict[str, dict[str, DistServe]]:
    """By model (without its owner) and degree."""
    return {
        model.partition("/")[2]: {tp: _one(each) for tp, each in degrees.items()}
        for model, degrees in published.items()
    }


def _one(coefficients: dict[str, float | tuple[float, float, float]]) -> DistServe:
    def seconds(name: str) -> tuple[float, float, float]:
        found = coefficients[name]
        assert not isinstance(found, float | int)
        start, middle, last = (each / 1e3 for each in found)
        return start, middle, last

    threshold = coefficients["decoding_large_small_bs_threshold"]
    assert isinstance(threshold, float | int)
    return DistServe(
        prefill_s=seconds("prefill"),
        small=Regime(*seconds("decoding_smallbs")),
        large=Regime(*seconds("decoding_largebs")),
        threshold=int(threshold),
    )
