"""From the rows of a run to its figures: latency, attainment, throughput, cost, reuse, phases.

The one place that computes them, for live and simulated runs alike; definitions are those of
``core.metrics`` and ``docs/benchmarking.md``. Percentiles are nearest rank over every answered
request behind the warm-up; attainment and everything made of it counts every request that arrived.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

import msgspec

from bench.run import Row, Run
from triptych.core.metrics import Latency, Pace, is_attained, latency, percentile
from triptych.core.request import Slo

TTFT_PHASES = ("queue", "encode", "encode_transfer", "prefill")
"""Phases in front of the first token, which prefill emits; KV moves and decode runs behind it."""
_MICRO = 1e6


class Quantiles(msgspec.Struct, frozen=True):
    """One quantity in seconds; zeros when ``count`` is 0."""

    count: int = 0
    mean: float = 0.0
    p50: float = 0.0
    p90: float = 0.0
    p95: float = 0.0
    p99: float = 0.0
    greatest: float = 0.0


class ClassFigures(msgspec.Struct, frozen=True):
    """Requests of one SLO class."""

    requests: int
    attainment: float
    ttft_s: Quantiles
    tpot_s: Quantiles


class Figures(msgspec.Struct, frozen=True):
    """Everything that is said about a run, or about several of one system at one rate."""

    requests: int
    """That arrived behind the warm-up."""
    outcomes: dict[str, int]
    ttft_s: Quantiles
    tpot_s: Quantiles
    """Over answers of at least two tokens, as the two below."""
    itl_s: Quantiles
    """Over all gaps; to a microsecond."""
    gap_p90_s: Quantiles
    """Of each request's own 90th percentile of its gaps."""
    whole_s: Quantiles
    """Arrival to the last token."""
    attainment: float
    """Share of all arrived requests that were answered within every bound of their class."""
    classes: dict[str, ClassFigures]
    requests_per_s: float
    """Answered between the end of the warm-up and the last arrival, per second."""
    tokens_per_s: float
    """Output tokens that came in that time, those of earlier arrivals too, per second."""
    effective_requests_per_s: float
    """Effective throughput: attained requests per second of arrivals."""
    effective_tokens_per_s: float
    effective_requests_per_gpu: float
    gpu_s_per_success: float | None
    """GPU seconds paid for one attained request, idle ones included; None if none attained."""
    joules_per_token: float | None
    cached_share: float
    """Of the answered requests' prompt tokens, those found in a prefix cache."""
    reused_share: float
    """Of the answered requests, those that found any."""
    utilisation: dict[str, float]
    """Share of the time in which the instances that do this kind of work were at it."""
    ttft_parts: dict[str, float]
    """Mean seconds of TTFT by phase; ``other`` is what no phase explains. Empty if unknown."""
    late_p99_s: float

    def cost_per_success(self, price_per_gpu_hour: float) -> float | None:
        """Price of one attained request, in the currency of the price."""
        if self.gpu_s_per_success is None:
            return None
        return self.gpu_s_per_success * price_per_gpu_hour / 3600


def slo_of(row: Row) -> Slo:
    """The bounds that a row was promised."""
    return Slo(row.slo, row.ttft_slo_s, row.tpot_slo_s)


def row_latency(row: Row) -> Latency | None:
    """Latency of an answered request, else None."""
    if row.status != "ok" or not row.token_times_s:
        return None
    return latency(row.arrival_s, row.token_times_s)


def counted(run: Run) -> tuple[Row, ...]:
    """Rows behind the warm-up."""
    return tuple(row for row in run.rows if row.arrival_s >= run.warmup_s)


class Samples:
    """Latencies of many requests, each looked at once."""

    def __init__(self, pace: Pace = "mean") -> None:
        self._pace = pace
        self.num_requests = 0
        self.num_attained = 0
        self.attained_tokens = 0
        self.outcomes: Counter[str] = Counter()
        self.ttft_s: list[float] = []
        self.tpot_s: list[float] = []
        self.gap_p90_s: list[float] = []
        self.whole_s: list[float] = []
        self.gaps_us: Counter[int] = Counter()
        """Every single gap, counted by microseconds: a long simulation has tens of millions."""

    def add(self, row: Row) -> None:
        """Take in one request, whatever became of it."""
        self.num_requests += 1
        found = row_latency(row)
        self.outcomes[row.status] += 1
        if found is None:
            return
        self.ttft_s.append(found.ttft_s)
        self.whole_s.append(row.token_times_s[-1] - row.arrival_s)
        if found.itl_s:
            self.tpot_s.append(found.tpot_s)
            self.gap_p90_s.append(found.gap_p90_s)
            self.gaps_us.update([round(gap * _MICRO) for gap in found.itl_s])
        if is_attained(found, slo_of(row), self._pace):
            self.num_attained += 1
            self.attained_tokens += len(row.token_times_s)

    @property
    def attainment(self) -> float:
        """Attained over arrived; 0 of nothing."""
        return self.num_attained / self.num_requests if self.num_requests else 0.0


def samples(rows: Iterable[Row], pace: Pace = "mean") -> Samples:
    """Samples of all ``rows``."""
    found = Samples(pace)
    for row in rows:
        found.add(row)
    return found


def quantiles(values: Iterable[float]) -> Quantiles:
    """Nearest-rank quantiles."""
    ordered = sorted(values)
    if not ordered:
        return Quantiles()
    cuts = [percentile(ordered, share) for share in (0.5, 0.9, 0.95, 0.99, 1.0)]
    return Quantiles(len(ordered), sum(ordered) / len(ordered), *cuts)


def at_shares(gaps_us: Mapping[int, int], shares: Sequence[float]) -> list[float]:
    """Nearest-rank percentiles in seconds of counted microseconds; ``shares`` ascending."""
    values = sorted(gaps_us)
    ranks = list(accumulate(gaps_us[value] for value in values))
    found, index = [], 0
    for share in shares:
        while index < len(ranks) - 1 and ranks[index] < share * ranks[-1] - 1e-9:
            index += 1
        found.append(values[index] / _MICRO if values else 0.0)
    return found


def _gap_quantiles(gaps_us: Counter[int]) -> Quantiles:
    if not gaps_us:
        return Quantiles()
    count = gaps_us.total()
    mean_s = sum(gap * times for gap, times in gaps_us.items()) / count / _MICRO
    return Quantiles(count, mean_s, *at_shares(gaps_us, (0.5, 0.9, 0.95, 0.99, 1.0)))


def figures(runs: Run | Sequence[Run], pace: Pace = "mean") -> Figures:
    """Figures of a run, or of several of one system at one rate, their requests pooled. Raises
    ValueError where the warm-up leaves nothing."""
    runs = (runs,) if isinstance(runs, Run) else tuple(runs)
    window_s = sum(run.duration_s - run.warmup_s for run in runs)
    if not runs or min(run.duration_s - run.warmup_s for run in runs) <= 0:
        raise ValueError("warmup_s: must end before the last arrival, or nothing is measured")
    rows = [row for run in runs for row in counted(run)]
    whole = samples(rows, pace)
    effective = whole.num_attained / window_s
    per_gpu_s = sum((run.duration_s - run.warmup_s) * run.num_gpus for run in runs)
    return Figures(
        requests=whole.num_requests,
        outcomes=dict(whole.outcomes),
        ttft_s=quantiles(whole.ttft_s),
        tpot_s=quantiles(whole.tpot_s),
        itl_s=_gap_quantiles(whole.gaps_us),
        gap_p90_s=quantiles(whole.gap_p90_s),
        whole_s=quantiles(whole.whole_s),
        attainment=whole.attainment,
        classes=_classes(rows, pace),
        requests_per_s=sum(map(_num_answered, runs)) / window_s,
        tokens_per_s=sum(map(_num_tokens, runs)) / window_s,
        effective_requests_per_s=effective,
        effective_tokens_per_s=whole.attained_tokens / window_s,
        effective_requests_per_gpu=whole.num_attained / per_gpu_s if per_gpu_s else 0.0,
        gpu_s_per_success=per_gpu_s / whole.num_attained if whole.num_attained else None,
        joules_per_token=_joules_per_token(runs),
        **_reuse(rows),
        utilisation=_utilisation(runs),
        ttft_parts=ttft_parts(rows),
        late_p99_s=max(run.late_p99_s for run in runs),
    )


def _classes(rows: Sequence[Row], pace: Pace) -> dict[str, ClassFigures]:
    by_name: dict[str, Samples] = {}
    for row in rows:
        by_name.setdefault(row.slo, Samples(pace)).add(row)
    return {
        name: ClassFigures(
            found.num_requests, found.attainment, quantiles(found.ttft_s), quantiles(found.tpot_s)
        )
        for name, found in sorted(by_name.items())
    }


def _num_answered(run: Run) -> int:
    return sum(
        row.status == "ok" and run.warmup_s <= row.end_s < run.duration_s for row in run.rows
    )


def _num_tokens(run: Run) -> int:
    return sum(
        run.warmup_s <= time_s < run.duration_s for row in run.rows for time_s in row.token_times_s
    )


def _joules_per_token(runs: Sequence[Run]) -> float | None:
    """Of the whole runs, warm-up included, as the energy is."""
    joules = [run.joules for run in runs if run.joules is not None]
    tokens = sum(len(row.token_times_s) for run in runs for row in run.rows)
    return sum(joules) / tokens if tokens and len(joules) == len(runs) else None


def _reuse(rows: Sequence[Row]) -> dict[str, float]:
    done = [row for row in rows if row.status == "ok"]
    prompt = sum(row.prompt_tokens for row in done)
    return {
        "cached_share": sum(row.cached_tokens for row in done) / prompt if prompt else 0.0,
        "reused_share": sum(row.cached_tokens > 0 for row in done) / len(done) if done else 0.0,
    }


def _utilisation(runs: Sequence[Run]) -> dict[str, float]:
    busy_s: defaultdict[str, float] = defaultdict(float)
    there_s: defaultdict[str, float] = defaultdict(float)
    for run in runs:
        workers: dict[str, set[str]] = {}
        for each in run.busy:
            inside_s = min(each.end_s, run.duration_s) - max(each.start_s, run.warmup_s)
            workers.setdefault(each.what, set()).add(each.instance)
            busy_s[each.what] += max(0.0, inside_s)
        for what, instances in workers.items():
            there_s[what] += len(instances) * (run.duration_s - run.warmup_s)
    return {what: busy_s[what] / there_s[what] for what in sorted(busy_s)}


def ttft_parts(rows: Iterable[Row]) -> dict[str, float]:
    """Mean seconds by phase of the TTFT of those answered rows whose phases are known. Phases may
    overlap (encode of one picture, prefill of what is before it): where they sum to more than the
    TTFT they are scaled down to it."""
    total: defaultdict[str, float] = defaultdict(float)
    count = 0
    for row in rows:
        if row.status != "ok" or not row.phases or not row.token_times_s:
            continue
        count += 1
        ttft_s = row.token_times_s[0] - row.arrival_s
        known = {name: row.phases.get(name, 0.0) for name in TTFT_PHASES}
        explained_s = sum(known.values())
        scale = min(1.0, ttft_s / explained_s) if explained_s > 0 else 0.0
        for name, value in known.items():
            total[name] += value * scale
        total["other"] += max(0.0, ttft_s - explained_s)
    return {name: total[name] / count for name in (*TTFT_PHASES, "other")} if count else {}
