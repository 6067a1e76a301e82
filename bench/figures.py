"""From the rows of a run to its figures: latency, attainment, throughput, cost, reuse, phases.

The one place that computes them, for live and simulated runs alike; definitions are those of
``core.metrics`` and ``docs/benchmarking.md``. Percentiles are nearest rank over every answered
request behind the warm-up; attainment and everything made of it counts every request that arrived.
"""

from bisect import bisect_left
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


class _OfClass:
    """What is kept of the requests of one SLO class."""

    def __init__(self) -> None:
        self.num_requests = self.num_attained = 0
        self.ttft_s: list[float] = []
        self.tpot_s: list[float] = []

    def figures(self) -> ClassFigures:
        share = self.num_attained / self.num_requests
        return ClassFigures(
            self.num_requests, share, quantiles(self.ttft_s), quantiles(self.tpot_s)
        )


class Samples:
    """Latencies of many requests, each looked at once. Samples of several runs can be added up."""

    def __init__(self) -> None:
        self.num_requests = 0
        self.num_attained = 0
        self.attained_tokens = 0
        self.outcomes: Counter[str] = Counter()
        self.classes: defaultdict[str, _OfClass] = defaultdict(_OfClass)
        self.ttft_s: list[float] = []
        self.tpot_s: list[float] = []
        self.gap_p90_s: list[float] = []
        self.whole_s: list[float] = []
        self.gaps_us: Counter[int] = Counter()
        """Every single gap, counted by microseconds: a long simulation has tens of millions."""

    def add(self, row: Row, pace: Pace = "mean") -> None:
        """Take in one request, whatever became of it."""
        self.num_requests += 1
        self.outcomes[row.status] += 1
        mine = self.classes[row.slo]
        mine.num_requests += 1
        found = row_latency(row)
        if found is None:
            return
        self.ttft_s.append(found.ttft_s)
        mine.ttft_s.append(found.ttft_s)
        self.whole_s.append(row.token_times_s[-1] - row.arrival_s)
        if found.itl_s:
            self.tpot_s.append(found.tpot_s)
            mine.tpot_s.append(found.tpot_s)
            self.gap_p90_s.append(found.gap_p90_s)
            self.gaps_us.update([round(gap * _MICRO) for gap in found.itl_s])
        if is_attained(found, slo_of(row), pace):
            self.num_attained += 1
            mine.num_attained += 1
            self.attained_tokens += len(row.token_times_s)

    def join(self, other: "Samples") -> None:
        """Take in those of another run."""
        self.num_requests += other.num_requests
        self.num_attained += other.num_attained
        self.attained_tokens += other.attained_tokens
        self.outcomes += other.outcomes
        self.gaps_us.update(other.gaps_us)
        for name in ("ttft_s", "tpot_s", "gap_p90_s", "whole_s"):
            getattr(self, name).extend(getattr(other, name))
        for name, theirs in other.classes.items():
            mine = self.classes[name]
            mine.num_requests += theirs.num_requests
            mine.num_attained += theirs.num_attained
            mine.ttft_s += theirs.ttft_s
            mine.tpot_s += theirs.tpot_s

    @property
    def attainment(self) -> float:
        """Attained over arrived; 0 of nothing."""
        return self.num_attained / self.num_requests if self.num_requests else 0.0


def samples(run: Run, pace: Pace = "mean") -> Samples:
    """Samples of a run's requests behind the warm-up."""
    found = Samples()
    for row in counted(run):
        found.add(row, pace)
    return found


def joined(parts: Iterable[Samples]) -> Samples:
    """Samples of several runs together."""
    found = Samples()
    for part in parts:
        found.join(part)
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


def figures(
    runs: Run | Sequence[Run], pace: Pace = "mean", whole: Samples | None = None
) -> Figures:
    """Figures of a run, or of several of one system at one rate, their requests pooled. ``whole``:
    their samples, if they are known already. Raises ValueError where the warm-up leaves nothing."""
    runs = (runs,) if isinstance(runs, Run) else tuple(runs)
    if not runs or min(run.duration_s - run.warmup_s for run in runs) <= 0:
        raise ValueError("warmup_s: must end before the last arrival, or nothing is measured")
    if whole is None:
        whole = joined(samples(run, pace) for run in runs)
    window_s = sum(run.duration_s - run.warmup_s for run in runs)
    gpu_s = sum((run.duration_s - run.warmup_s) * run.num_gpus for run in runs)
    rows = [row for run in runs for row in counted(run)]
    return Figures(
        requests=whole.num_requests,
        outcomes=dict(whole.outcomes),
        ttft_s=quantiles(whole.ttft_s),
        tpot_s=quantiles(whole.tpot_s),
        itl_s=_gap_quantiles(whole.gaps_us),
        gap_p90_s=quantiles(whole.gap_p90_s),
        whole_s=quantiles(whole.whole_s),
        attainment=whole.attainment,
        classes={name: whole.classes[name].figures() for name in sorted(whole.classes)},
        requests_per_s=sum(map(_num_answered, runs)) / window_s,
        tokens_per_s=sum(map(_num_tokens, runs)) / window_s,
        effective_requests_per_s=whole.num_attained / window_s,
        effective_tokens_per_s=whole.attained_tokens / window_s,
        effective_requests_per_gpu=whole.num_attained / gpu_s if gpu_s else 0.0,
        gpu_s_per_success=gpu_s / whole.num_attained if whole.num_attained else None,
        joules_per_token=_joules_per_token(runs),
        **_reuse(rows),
        utilisation=_utilisation(runs),
        ttft_parts=ttft_parts(rows),
        late_p99_s=max(run.late_p99_s for run in runs),
    )


def _num_answered(run: Run) -> int:
    return sum(
        row.status == "ok" and run.warmup_s <= row.end_s < run.duration_s for row in run.rows
    )


def _num_tokens(run: Run) -> int:
    return sum(
        bisect_left(row.token_times_s, run.duration_s)
        - bisect_left(row.token_times_s, run.warmup_s)
        for row in run.rows
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
    """By kind of work; what one instance does twice at once counts once."""
    busy_s: defaultdict[str, float] = defaultdict(float)
    there_s: defaultdict[str, float] = defaultdict(float)
    for run in runs:
        until_s: dict[tuple[str, str], float] = {}
        for each in sorted(run.busy, key=lambda each: each.start_s):
            key = (each.what, each.instance)
            from_s = max(each.start_s, until_s.get(key, run.warmup_s))
            end_s = min(each.end_s, run.duration_s)
            busy_s[each.what] += max(0.0, end_s - from_s)
            until_s[key] = max(from_s, end_s)
        for what, _ in until_s:
            there_s[what] += run.duration_s - run.warmup_s
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
