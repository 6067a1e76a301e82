"""Distributions and phases of the settings of a study, small enough for a page.

A curve has some 500 points whatever the number of requests: nearest-rank quantiles at fixed shares,
closer together in the tail. Knows figures; no page.
"""

from collections.abc import Sequence
from typing import Any

from bench.figures import at_shares, counted, row_latency, ttft_parts
from bench.run import Row
from bench.study import Setting
from triptych.core.metrics import percentile

_BODY = tuple(step / 400 for step in range(1, 397))
_TAIL = tuple(1 - 0.01 * 0.955**step for step in range(1, 100))
SHARES = (*_BODY, *_TAIL, 1.0)
"""Of requests (or gaps), ascending."""
CUTS = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
_NEAR = 0.01
"""Requests of so great a share on each side of a percentile stand for it."""
_LEAST_NEAR = 5


def curves(setting: Setting) -> dict[str, Any]:
    """CDFs of TTFT, TPOT and ITL in milliseconds at ``SHARES``, over all seeds."""
    found = setting.samples
    lines = {
        "ttft": _at(sorted(found.ttft_s)),
        "tpot": _at(sorted(found.tpot_s)),
        "itl": at_shares(found.gaps_us, SHARES) if found.gaps_us else [],
    }
    return {
        "system": setting.system,
        "rate": setting.rate,
        "answered": round(len(found.ttft_s) / max(found.num_requests, 1), 5),
        **{name: [short(value * 1e3) for value in line] for name, line in lines.items()},
    }


def _at(ordered: Sequence[float]) -> list[float]:
    return [percentile(ordered, share) for share in SHARES] if ordered else []


def phases(setting: Setting) -> list[dict[str, Any]]:
    """Where TTFT went, in milliseconds: the mean of all, and of the requests around percentiles.
    Empty where the server does not say."""
    rows = [
        row
        for run in setting.runs
        for row in counted(run)
        if row.phases and row_latency(row) is not None
    ]
    rows.sort(key=_ttft_s)
    bands: dict[str, Sequence[Row]] = {"mean": rows}
    for name, share in CUTS.items():
        middle = min(int(share * len(rows)), len(rows) - 1)
        reach = max(_LEAST_NEAR, round(_NEAR * len(rows)))
        bands[name] = rows[max(0, middle - reach) : middle + reach + 1]
    return [
        {
            "system": setting.system,
            "rate": setting.rate,
            "at": name,
            "count": len(band),
            "parts": {part: short(value * 1e3) for part, value in ttft_parts(band).items()},
        }
        for name, band in bands.items()
        if band
    ]


def _ttft_s(row: Row) -> float:
    return row.token_times_s[0] - row.arrival_s


def short(value: float) -> float:
    """Four significant digits: more than a page can show."""
    return float(f"{value:.4g}")
