"""What the router counts and measures, as Prometheus sees it.

Names are ``triptych_<stage>_<noun>_<unit>``; ``docs/metrics.md`` lists them. Latencies are computed
by ``core.metrics``; this file only keeps them.
"""

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from scheduler.estimate import Error
from triptych.core.metrics import Latency, is_attained
from triptych.core.request import Slo

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_GAPS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.15, 0.3, 1.0)


_COUNTS = {
    "stale": (
        "router_directory_stale",
        "Attempts repeated because something was not cached where the directory said",
    ),
    "encodes_skipped": (
        "router_encodes_skipped",
        "Pictures not encoded, because their KV or embedding was cached where it was needed",
    ),
    "prefix_fetches": (
        "prefill_prefix_fetches",
        "Beginnings of prompts that a prefill instance was told to fetch from another one",
    ),
    "prefix_bytes": ("prefill_prefix_bytes", "KV of those beginnings that it lacked"),
}


class RouterMetrics:
    """One registry per router, so that several may live in one process."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "triptych_router_requests", "Requests by outcome", ["outcome"], registry=registry
        )
        self._retries = Counter(
            "triptych_router_retries", "Attempts beyond the first", registry=registry
        )
        self._tokens = Counter(
            "triptych_router_tokens", "Tokens of completed requests", ["kind"], registry=registry
        )
        self._attained = Counter(
            "triptych_router_slo_requests",
            "Completed requests by SLO class and whether every bound was met",
            ["slo", "attained"],
            registry=registry,
        )
        self._ttft = Histogram(
            "triptych_router_ttft_seconds", "Arrival to first token", buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        self._tpot = Histogram(
            "triptych_router_tpot_seconds", "Mean gap between tokens", buckets=_GAPS,
            registry=registry,
        )  # fmt: skip
        self._stage = Histogram(
            "triptych_router_stage_seconds", "Time of one request by part", ["part"],
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self._open = Gauge(
            "triptych_router_open_requests", "Accepted requests not ended", registry=registry
        )
        self._instances = Gauge(
            "triptych_cluster_instances", "Instances that serve, by role", ["role"],
            registry=registry,
        )  # fmt: skip

        self._add_predictions(registry)
        self._directory_hits = Counter(
            "triptych_router_directory_hits",
            "Attempts placed where a beginning (kv) was said to be cached, and pictures (item)",
            ["kind"],
            registry=registry,
        )
        self._items = Counter(
            "triptych_encode_items",
            "Pictures asked of encoders: computed, cached there, or overtaken by the answer",
            ["source"],
            registry=registry,
        )
        self._counts = {
            name: Counter(f"triptych_{metric}", text, registry=registry)
            for name, (metric, text) in _COUNTS.items()
        }
        self._failovers = Gauge(
            "triptych_cluster_link_failovers",
            "Times that another transport had to be used on a link of an instance that lives",
            registry=registry,
        )

    def _add_predictions(self, registry: CollectorRegistry) -> None:
        self._waiting = Gauge(
            "triptych_router_waiting_requests",
            "Requests that wait for their turn before they are accepted", registry=registry,
        )  # fmt: skip
        self._predictions = Gauge(
            "triptych_router_prediction_error_ratio",
            "Predicted against seen, running mean: its size (mape) and its direction (bias)",
            ["what", "kind"], registry=registry,
        )  # fmt: skip

    def ended(self, outcome: str) -> None:
        """A request reached its terminal state, or was rejected (``rejected:<code>``)."""
        self._requests.labels(outcome).inc()

    def completed(
        self, latency: Latency, slo: Slo, parts: Mapping[str, float], tokens: Mapping[str, int]
    ) -> None:
        """A request was answered: its latency, where the time went, how many tokens."""
        self._ttft.observe(latency.ttft_s)
        if latency.itl_s:
            self._tpot.observe(latency.tpot_s)
        for part, seconds in parts.items():
            self._stage.labels(part).observe(seconds)
        for kind, count in tokens.items():
            self._tokens.labels(kind).inc(count)
        self._attained.labels(slo.name, str(is_attained(latency, slo)).lower()).inc()

    def retried(self, count: int) -> None:
        """A request needed ``count`` more attempts than one."""
        self._retries.inc(count)

    def tallied(self, tally: Mapping[str, int]) -> None:
        """What the directory was good for in one choice of a request, and what was encoded."""
        for source in ("computed", "cached", "overtaken"):
            self._items.labels(source).inc(tally.get(source, 0))
        self._directory_hits.labels("kv").inc(tally.get("kv_hits", 0))
        self._directory_hits.labels("item").inc(tally.get("item_hits", 0))
        for name, counter in self._counts.items():
            counter.inc(tally.get(name, 0))

    def waiting(self, count: int) -> None:
        """So many requests wait for their turn."""
        self._waiting.set(count)

    def predicted(self, errors: Mapping[str, Error]) -> None:
        """How right predictions were so far, by what was predicted."""
        for what, error in errors.items():
            self._predictions.labels(what, "mape").set(error.mape)
            self._predictions.labels(what, "bias").set(error.bias)

    def exposition(
        self, num_open: int, instances: Mapping[str, int], num_failovers: int = 0
    ) -> bytes:
        """Everything in Prometheus' text format."""
        self._failovers.set(num_failovers)
        self._open.set(num_open)
        self._instances.clear()
        for role, count in instances.items():
            self._instances.labels(role).set(count)
        return generate_latest(self._registry)
