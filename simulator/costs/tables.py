"""Measured kernel tables of NVIDIA's AIConfigurator: seconds of one launch, between the measured
sizes too.

Knows the folders and columns of ``aiconfigurator_perf`` and how to read between their rows; no
model. The only file that reads Parquet, so it alone needs ``pyarrow`` (extra ``sim``).
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping
from functools import cached_property
from math import log
from pathlib import Path
from typing import Any

from scheduler.curves import Curve
from scheduler.fitted import FitError, fit_error
from simulator.costs.devices import Device
from triptych.core.errors import ConfigError

COMMIT = "ai-dynamo/aiconfigurator 095f58a"
HEAD_DIM = 128
"""Of a decoder's heads; what the tables of context and generation attention are read for."""
FOLD = 8
"""Most key-value heads in a table of generation attention. More of them are more sequences: a
kernel works on pairs of sequence and key-value head."""
Grid = dict[tuple[int, int], float]
"""Seconds by batch and length."""


class Tables:
    """All tables of one device and dtype below ``root``. Seconds everywhere; read when asked for.

    Raises ConfigError where a file is missing or ``pyarrow`` is not installed.
    """

    def __init__(self, root: Path, device: Device, number: str = "bfloat16") -> None:
        self.root = root / device.tables
        self.device, self.number = device, number

    @cached_property
    def gemm(self) -> "Gemm":
        """Products ``(m, k) x (k, n)``: the fastest kernel measured."""
        best: dict[tuple[int, int, int], float] = {}
        for row in self._rows("gemm", "gemm_perf"):
            if row["gemm_dtype"] == self.number:
                key = (row["m"], row["n"], row["k"])
                best[key] = min(best.get(key, 1e9), row["latency"] / 1e3)
        return Gemm(best)

    def context(self, heads: int, kv_heads: int) -> Grid:
        """Causal attention over whole prompts."""
        return between_heads(self._attention["context"], heads, kv_heads)

    def generation(self, heads: int, kv_heads: int) -> Grid:
        """One query for each sequence over its context. ``kv_heads`` beyond the measured ones are
        folded into the batch; keys stay those of the sequences."""
        if kv_heads <= FOLD:
            return between_heads(self._attention["generation"], heads, kv_heads)
        folded = between_heads(self._attention["generation"], FOLD * heads // kv_heads, FOLD)
        lengths = sorted({length for _, length in folded})
        times = kv_heads / FOLD
        grid = {}
        for length in lengths:
            batches = sorted(batch for batch, at in folded if at == length)
            curve = Curve(
                tuple(map(float, batches)), tuple(folded[batch, length] for batch in batches)
            )
            for batch in batches:
                if batches[0] <= batch * times <= batches[-1]:
                    grid[batch, length] = curve.at(batch * times)
        return grid

    def encoder(self, heads: int, head_dim: int) -> Grid:
        """Attention of an encoder, all to all. Between measured counts of heads; a wider head costs
        in proportion. A device without such a table takes the one of ``encoder_like``, times the
        ratio of both devices' causal attention at the nearest size."""
        if self.device.encoder_like is not None:
            like = Tables(self.root.parent, self.device.encoder_like, self.number)
            return _rescaled(like, self, like.encoder(heads, head_dim))
        rows = self._rows("encoder_attention", "encoder_attention_perf")
        widths = sorted({row["head_dim"] for row in rows})
        width = next((each for each in widths if each >= head_dim), widths[-1])
        grids: dict[tuple[int, int], Grid] = defaultdict(dict)
        for row in rows:
            if row["head_dim"] == width:
                seconds = row["latency"] / 1e3 * max(1.0, head_dim / width)
                grids[row["num_heads"], row["num_heads"]][row["batch_size"], row["isl"]] = seconds
        return between_heads(grids, heads, heads)

    def all_reduce(self, gpus: int) -> Curve:
        """By BF16 numbers in the message, launched from a CUDA graph; a device without a table
        takes that of ``comm_like`` and its own link's speed."""
        if self.device.comm_like is not None:
            like = Tables(self.root.parent, self.device.comm_like, self.number).all_reduce(gpus)
            slower = self.device.comm_like.nvlink_bytes_per_s / self.device.nvlink_bytes_per_s
            base = like.ys[0]
            return Curve(like.xs, tuple(base + slower * (y - base) for y in like.ys))
        rows = sorted(
            (float(row["message_size"]), row["latency"] / 1e3)
            for row in self._rows("comm", "custom_allreduce_perf")
            if row["num_gpus"] == gpus and row["backend"] == "vllm_graph"
        )
        if not rows:
            raise ConfigError(f"tables: no all-reduce over {gpus} devices below {self.root}")
        return Curve(tuple(x for x, _ in rows), tuple(y for _, y in rows))

    @cached_property
    def _attention(self) -> dict[str, dict[tuple[int, int], Grid]]:
        """``context`` and ``generation`` by heads and key-value heads; no sliding window."""
        found: dict[str, dict[tuple[int, int], Grid]] = {}
        for name in ("context", "generation"):
            grids: dict[tuple[int, int], Grid] = defaultdict(dict)
            for row in self._rows("attention", f"{name}_attention_perf"):
                is_ours = row["head_dim"] == HEAD_DIM and not row.get("window_size", 0)
                if is_ours and row["kv_cache_dtype"] == "bfloat16":
                    length = row["isl"] + row["step"]
                    key = (row["num_heads"], row["num_key_value_heads"])
                    grids[key][row["batch_size"], length] = row["latency"] / 1e3
            found[name] = dict(grids)
        return found

    def _rows(self, family: str, name: str) -> list[dict[str, Any]]:
        try:
            from pyarrow import parquet
        except ImportError:
            raise ConfigError("tables: reading Parquet needs pyarrow (extra sim)") from None
        path = self.root / family / "vllm" / self.device.tables_version / f"{name}.parquet"
        if not path.is_file():
            raise ConfigError(f"tables: {path} is missing")
        rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
        return rows


class Gemm:
    """Products by ``m``, ``n`` and ``k``: straight in ``m``, straight in the logarithms of ``n``
    and ``k`` (a product's time is a power of each size, in stretches); in proportion beyond the
    largest ``n`` and ``k``."""

    def __init__(self, seconds: Mapping[tuple[int, int, int], float]) -> None:
        self._seconds = dict(seconds)
        self.rows = sorted({m for m, _, _ in seconds})
        self._sizes = sorted({n for _, n, _ in seconds})

    def at(self, m: float, n: int, k: int) -> float:
        """Seconds; ``m`` > 0."""
        rows = self.rows
        right = min(max(bisect_left(rows, m), 1), len(rows) - 1)
        low, high = rows[right - 1], rows[right]
        below = self._at(low, n, k)
        if m <= low:
            return below
        return below + (self._at(high, n, k) - below) * (m - low) / (high - low)

    def error(self, low: int = 1024, high: int = 12288) -> FitError:
        """Of reading between sizes: each measured product with inner ``n`` and ``k``, computed
        without its own row and column. Twice as far from its neighbours as any true use."""
        inner = [size for size in self._sizes[1:-1] if low <= size <= high]
        pairs = []
        for n in inner:
            for k in inner:
                for m in self.rows:
                    pairs.append((self._at(m, n, k, own=False), self._seconds[m, n, k]))
        return fit_error(pairs)

    def _at(self, m: int, n: int, k: int, own: bool = True) -> float:
        total = 0.0
        for each_n, weight_n, times_n in self._around(n, own):
            for each_k, weight_k, times_k in self._around(k, own):
                seconds = self._seconds[m, each_n, each_k] * times_n * times_k
                total += weight_n * weight_k * log(seconds)
        return float(2.718281828459045**total)

    def _around(self, size: int, own: bool) -> list[tuple[int, float, float]]:
        """Measured sizes to read from: size, weight and factor each."""
        sizes = self._sizes if own else [each for each in self._sizes if each != size]
        right = bisect_left(sizes, size)
        if right < len(sizes) and sizes[right] == size:
            return [(size, 1.0, 1.0)]
        if right == 0:
            return [(sizes[0], 1.0, 1.0)]
        if right == len(sizes):
            return [(sizes[-1], 1.0, size / sizes[-1])]
        low, high = sizes[right - 1], sizes[right]
        share = log(size / low) / log(high / low)
        return [(low, 1.0 - share, 1.0), (high, share, 1.0)]


def between_heads(grids: Mapping[tuple[int, int], Grid], heads: int, kv_heads: int) -> Grid:
    """The grid of so many heads, straight between measured counts: of equal key-value heads, or,
    where each head has its own, along those."""
    if (heads, kv_heads) in grids:
        return dict(grids[heads, kv_heads])
    if heads == kv_heads:
        counts = sorted(count for count, kv in grids if count == kv)
    else:
        counts = sorted(count for count, kv in grids if kv == kv_heads)
    right = bisect_left(counts, heads)
    if not 0 < right < len(counts):
        raise ConfigError(f"tables: no attention near {heads} heads, {kv_heads} of keys and values")
    low, high = counts[right - 1], counts[right]
    share = (heads - low) / (high - low)
    below, above = (grids[count, count if heads == kv_heads else kv_heads] for count in (low, high))
    return {
        at: (1.0 - share) * below[at] + share * above[at] for at in sorted(below.keys() & above)
    }


def _rescaled(like: Tables, own: Tables, grid: Grid) -> Grid:
    """``grid`` of one device as if measured on the other, by their causal attention."""
    measured, other = own.context(16, 16), like.context(16, 16)
    both = sorted(measured.keys() & other)
    scaled = {}
    for batch, length in grid:
        near = min(both, key=lambda at: abs(log(at[0] / batch)) + abs(log(at[1] / length)))
        scaled[batch, length] = grid[batch, length] * measured[near] / other[near]
    return scaled
