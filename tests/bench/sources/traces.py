"""Where public traces lie, and a check that every workload must pass."""

import os
from pathlib import Path

import msgspec

from bench.workload import SIDE, Arrival, Workload
from triptych.core.metrics import SLO_CLASSES

ROOT = Path(__file__).parents[3]
TRACES = Path(os.environ.get("TRIPTYCH_TRACES", ROOT.parent / "shared" / "traces"))


def drawn(workload: Workload, rate: float | None, duration_s: float, seed: int) -> list[Arrival]:
    """The requests, after a look at what holds for all of them."""
    found = list(workload.arrivals(rate, duration_s, seed))
    times = [one.at_s for one in found]
    assert times == sorted(times)
    assert all(0 <= at <= duration_s for at in times)
    for one in found:
        assert one.num_output >= 1
        assert one.slo in SLO_CLASSES
        assert all(part.num_tokens >= 1 for part in one.parts)
        assert all(image.width % SIDE == image.height % SIDE == 0 for image in one.images)
    again = list(workload.arrivals(rate, duration_s, seed))
    assert msgspec.json.encode(again) == msgspec.json.encode(found)
    return found
