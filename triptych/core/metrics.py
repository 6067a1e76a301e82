"""Latency words computed once, for server, bench and simulator: TTFT, TPOT, ITL, attainment.

Definitions of ``docs/metrics.md``: TTFT is arrival to first token; TPOT the mean gap between the
tokens behind it; ITL each single gap. Knows no registry and no exporter.
"""

import math
from collections.abc import Sequence
from operator import sub
from typing import Literal

import msgspec

from triptych.core.request import Slo


class Latency(msgspec.Struct, frozen=True):
    """Latency of one request."""

    ttft_s: float
    tpot_s: float
    """0 for an answer of one token."""
    itl_s: tuple[float, ...]

    @property
    def gap_p90_s(self) -> float:
        """The gap that nine tenths of the request's own gaps do not exceed (TriInfer's measure);
        0 for an answer of one token."""
        return percentile(sorted(self.itl_s), 0.9)


def percentile(ordered: Sequence[float], share: float) -> float:
    """The least of ``ordered`` (ascending) that at least ``share`` (0 to 1) of them do not exceed:
    nearest rank, so always a value that was measured. 0 of nothing."""
    if not ordered:
        return 0.0
    rank = math.ceil(share * len(ordered) - 1e-9)  # 0.07 * 100 is a little more than 7
    return ordered[min(max(rank, 1), len(ordered)) - 1]


def latency(arrival_s: float, token_times_s: Sequence[float]) -> Latency:
    """Latency from the arrival and the times at which tokens reached the client side."""
    if not token_times_s:
        raise ValueError("token_times_s: a latency needs at least one token")
    gaps = tuple(map(sub, token_times_s[1:], token_times_s))
    return Latency(
        ttft_s=token_times_s[0] - arrival_s,
        tpot_s=(token_times_s[-1] - token_times_s[0]) / len(gaps) if gaps else 0.0,
        itl_s=gaps,
    )


Pace = Literal["mean", "p90"]
"""What a bound of TPOT is held against: the mean gap (DistServe, EPDServe), or the gap that nine
tenths of the request's gaps do not exceed (TriInfer). Figures of the two are not comparable."""


def is_attained(latency: Latency, slo: Slo, pace: Pace = "mean") -> bool:
    """Whether a request met every bound of its SLO."""
    if slo.ttft_s is not None and latency.ttft_s > slo.ttft_s:
        return False
    if slo.tpot_s is None:
        return True
    return (latency.tpot_s if pace == "mean" else latency.gap_p90_s) <= slo.tpot_s


def slo_class(name: str, num_pictures: int) -> Slo:
    """The named class (design.md, SLO classes); raises KeyError for an unknown name."""
    if name == "multi-image":
        return Slo(name, 0.6 + 0.6 * num_pictures, 0.05)
    return _CLASSES[name]


_CLASSES = {
    "interactive": Slo("interactive", 2.0, 0.05),
    "strict": Slo("strict", 0.8, 0.03),
    "video": Slo("video", 5.0, 0.08),
    "batch": Slo("batch", None, None),
}
SLO_CLASSES = ("interactive", "strict", "multi-image", "video", "batch")
"""Names that a request may give."""
