"""Numbers of runs by name: what a target may compare. Runs of one system, its rates and seeds
pooled, in; one number out. Knows no target."""

from collections.abc import Callable, Sequence
from statistics import fmean

from bench.figures import Figures, figures, row_latency
from bench.run import Row, Run

Statistic = Callable[[Sequence[Run]], float]


def _figure(pick: Callable[[Figures], float]) -> Statistic:
    return lambda runs: pick(figures(runs))


def makespan_s(runs: Sequence[Run]) -> float:
    """First arrival to last end, the mean over runs."""
    return fmean(
        max(row.end_s for row in run.rows) - min(row.arrival_s for row in run.rows) for run in runs
    )


def tokens_per_s(runs: Sequence[Run]) -> float:
    """Output tokens per second of the makespan."""
    tokens = sum(len(row.token_times_s) for run in runs for row in run.rows)
    return tokens / (makespan_s(runs) * len(runs))


def later(run: Run) -> list[Row]:
    """Requests that were not the first of their session."""
    seen: set[str] = set()
    found = []
    for row in sorted(run.rows, key=lambda row: row.arrival_s):
        if row.session in seen:
            found.append(row)
        seen.add(row.session)
    return found


def later_ttft_s(runs: Sequence[Run]) -> float:
    """Mean TTFT of second and later turns."""
    times = [each.ttft_s for run in runs for row in later(run) if (each := row_latency(row))]
    return fmean(times)


def hidden_share(runs: Sequence[Run]) -> float:
    """Of the time that wires spend on a prompt's KV, the share that is over when prefill is.

    For prompts without pictures that wait for nobody: the second token comes later than a decode
    step behind the first by what was still on its way.
    """
    times = [row.token_times_s for run in runs for row in run.rows]
    exposed_s = sum((second - first) - (third - second) for first, second, third, *_ in times)
    wire_s = sum(
        busy.end_s - busy.start_s for run in runs for busy in run.busy if busy.what == "transfer"
    )
    return 1.0 - exposed_s / wire_s


STATISTICS: dict[str, Statistic] = {
    "ttft.mean": _figure(lambda found: found.ttft_s.mean),
    "ttft.p50": _figure(lambda found: found.ttft_s.p50),
    "ttft.p99": _figure(lambda found: found.ttft_s.p99),
    "tpot.mean": _figure(lambda found: found.tpot_s.mean),
    "tpot.p99": _figure(lambda found: found.tpot_s.p99),
    "attainment": _figure(lambda found: found.attainment),
    "cached": _figure(lambda found: found.cached_share),
    "makespan": makespan_s,
    "tokens_per_s": tokens_per_s,
    "later_ttft.mean": later_ttft_s,
    "hidden": hidden_share,
}
"""By the name that target files use."""
