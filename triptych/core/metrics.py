"""Latency words computed once, for server, bench and simulator: TTFT, TPOT, ITL, attainment.

Definitions of ``docs/metrics.md``: TTFT is arrival to first token; TPOT the mean gap between the
tokens behind it; ITL each single gap. Knows no registry and no exporter.
"""

from collections.abc import Sequence
from itertools import pairwise

import msgspec

from triptych.core.request import Slo


class Latency(msgspec.Struct, frozen=True):
    """Latency of one request."""

    ttft_s: float
    tpot_s: float
    """0 for an answer of one token."""
    itl_s: tuple[float, ...]


def latency(arrival_s: float, token_times_s: Sequence[float]) -> Latency:
    """Latency from the arrival and the times at which tokens reached the client side."""
    if not token_times_s:
        raise ValueError("token_times_s: a latency needs at least one token")
    gaps = tuple(b - a for a, b in pairwise(token_times_s))
    return Latency(
        ttft_s=token_times_s[0] - arrival_s,
        tpot_s=sum(gaps) / len(gaps) if gaps else 0.0,
        itl_s=gaps,
    )


def is_attained(latency: Latency, slo: Slo) -> bool:
    """Whether a request met every bound of its SLO."""
    return (slo.ttft_s is None or latency.ttft_s <= slo.ttft_s) and (
        slo.tpot_s is None or latency.tpot_s <= slo.tpot_s
    )


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
