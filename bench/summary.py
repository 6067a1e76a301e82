"""The table of ``make bench``: TTFT, TPOT, ITL, throughput; medians and spread over repetitions.

Definitions come from ``triptych.core.metrics``. Knows no server and no clock.
"""

from collections.abc import Callable, Iterable, Sequence
from statistics import median

import msgspec

from bench.client import Outcome
from triptych.core.metrics import latency, percentile


class Quantiles(msgspec.Struct, frozen=True):
    """Of one quantity over the requests (or gaps) of a run, in seconds."""

    p50: float
    p90: float
    p99: float


class Summary(msgspec.Struct, frozen=True):
    """One run at one rate."""

    requests: int
    outcomes: dict[str, int]
    """Requests by status."""
    trouble: str
    """What the first request that was not answered was told."""
    ttft_s: Quantiles
    tpot_s: Quantiles
    itl_s: Quantiles
    total_s: Quantiles
    """Arrival to the last token: what no bunching of tokens on their way can flatter."""
    requests_per_s: float
    """Completed requests over the time from first arrival to last end."""
    tokens_per_s: float
    duration_s: float


class Spread(msgspec.Struct, frozen=True):
    """One figure over repetitions."""

    median: float
    low: float
    high: float


class Row(msgspec.Struct, frozen=True):
    """One system at one rate, over all repetitions."""

    system: str
    rate: float
    runs: tuple[Summary, ...]

    def spread(self, figure: Callable[[Summary], float]) -> Spread:
        """Median, least and greatest of a figure of the runs."""
        values = [figure(run) for run in self.runs]
        return Spread(median(values), min(values), max(values))


FIGURES: dict[str, tuple[str, Callable[[Summary], float]]] = {
    "TTFT p50": ("ms", lambda run: run.ttft_s.p50 * 1e3),
    "TTFT p99": ("ms", lambda run: run.ttft_s.p99 * 1e3),
    "TPOT p50": ("ms", lambda run: run.tpot_s.p50 * 1e3),
    "ITL p99": ("ms", lambda run: run.itl_s.p99 * 1e3),
    "whole p50": ("ms", lambda run: run.total_s.p50 * 1e3),
    "requests": ("/s", lambda run: run.requests_per_s),
    "tokens": ("/s", lambda run: run.tokens_per_s),
}
"""Columns of the table: name, unit, figure of a run."""


def quantiles(values: Sequence[float]) -> Quantiles:
    """Nearest-rank percentiles; zeros when there is nothing."""
    ordered = sorted(values)
    return Quantiles(*(percentile(ordered, part) for part in (0.5, 0.9, 0.99)))


def summarise(outcomes: Sequence[Outcome]) -> Summary:
    """Figures of one run. Latencies count completed requests only; the others are counted."""
    done = [outcome for outcome in outcomes if outcome.status == "ok"]
    latencies = [latency(outcome.arrival_s, outcome.token_times_s) for outcome in done]
    counts: dict[str, int] = {}
    for outcome in outcomes:
        counts[outcome.status] = counts.get(outcome.status, 0) + 1
    first_s = min((outcome.arrival_s for outcome in outcomes), default=0.0)
    duration_s = max((outcome.end_s for outcome in outcomes), default=0.0) - first_s
    num_tokens = sum(len(outcome.token_times_s) for outcome in done)
    return Summary(
        requests=len(outcomes),
        outcomes=counts,
        trouble=next((outcome.detail for outcome in outcomes if outcome.status != "ok"), ""),
        ttft_s=quantiles([one.ttft_s for one in latencies]),
        tpot_s=quantiles([one.tpot_s for one in latencies if one.itl_s]),
        itl_s=quantiles([gap for one in latencies for gap in one.itl_s]),
        total_s=quantiles([one.token_times_s[-1] - one.arrival_s for one in done]),
        requests_per_s=len(done) / duration_s if duration_s else 0.0,
        tokens_per_s=num_tokens / duration_s if duration_s else 0.0,
        duration_s=duration_s,
    )


def table(rows: Iterable[Row]) -> str:
    """Markdown: median of the repetitions, and in brackets their least and greatest."""
    names = [f"{name} ({unit})" for name, (unit, _) in FIGURES.items()]
    lines = [
        "| rate (1/s) | system | " + " | ".join(names) + " | not answered |",
        "|---|---|" + "---|" * (len(names) + 1),
    ]
    for row in rows:
        answered = all(run.outcomes.get("ok") for run in row.runs)
        cells = [
            _cell(row.spread(figure)) if answered else "none" for _, figure in FIGURES.values()
        ]
        lost = sum(run.requests - run.outcomes.get("ok", 0) for run in row.runs)
        asked = sum(run.requests for run in row.runs)
        name = f"| {row.rate:g} | {row.system} | "
        lines.append(name + " | ".join(cells) + f" | {lost} of {asked} |")
    return "\n".join(lines)


def _cell(spread: Spread) -> str:
    return f"{_short(spread.median)} ({_short(spread.low)}-{_short(spread.high)})"


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"
