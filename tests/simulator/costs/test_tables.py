"""Reading between rows of kernel tables, on drawn ones; and the shipped files from true ones."""

import importlib.util
import os
from pathlib import Path

import pytest

from scheduler.curves import Curve
from simulator.costs.card import to_json
from simulator.costs.compose import fit_attention
from simulator.costs.devices import A100, H200
from simulator.costs.fit import DATA, composed, main
from simulator.costs.tables import Gemm, Tables, between_heads
from tests.house.sources import ROOT
from triptych.core.errors import ConfigError

TRACES = Path(os.environ.get("TRIPTYCH_TRACES", ROOT.parent / "shared" / "traces"))
MEASURED = TRACES / "aiconfigurator_perf"
needs_tables = pytest.mark.skipif(
    not MEASURED.is_dir() or importlib.util.find_spec("pyarrow") is None,
    reason="no copy of aiconfigurator_perf, or no pyarrow (extra sim) to read it",
)
SIZES = (256, 512, 1024, 2048, 4096, 8192, 16384)


def drawn_gemm():
    """A device whose products take m * n * k * 1e-15 seconds."""
    return Gemm({(m, n, k): m * n * k * 1e-15 for m in (1, 64, 4096) for n in SIZES for k in SIZES})


@pytest.mark.parametrize(
    ("m", "n", "k"),
    [(1, 256, 256), (64, 3584, 18944), (1000, 5000, 700), (9000, 152064, 8192), (0.5, 512, 512)],
)
def test_products_between_and_beyond_measured_ones(m, n, k):
    assert drawn_gemm().at(m, n, k) == pytest.approx(max(1, m) * n * k * 1e-15, rel=1e-9)


def test_a_table_that_is_a_power_law_has_no_error():
    error = drawn_gemm().error()
    assert error.num_points == 3 * 4 * 4
    assert error.max < 1e-9


def test_heads_between_measured_counts():
    grids = {(heads, kv): {(1, 128): float(heads * kv)} for heads in (8, 16) for kv in (4, heads)}
    assert between_heads(grids, 12, 4) == {(1, 128): 48.0}
    assert between_heads(grids, 12, 12) == {(1, 128): (64.0 + 256.0) / 2}
    with pytest.raises(ConfigError, match="near 20 heads"):
        between_heads(grids, 20, 4)


@pytest.mark.parametrize(("share", "extra"), [(0.5, 300), (1.0, 100)])
def test_attention_is_found_again(share, extra):
    grid = {}
    for batch in (1, 4, 16):
        for length in (16, 100, 500, 1024, 4096):
            keys = (length + 1) / 2 if share == 0.5 else length
            grid[batch, length] = 1e-5 + 2e-11 * batch * length * (keys + extra)
    attention, error = fit_attention(grid, share, layers=3)
    assert (attention.tile, attention.extra_keys) == (1, extra)
    assert error.max < 0.05
    assert isinstance(attention.seconds, Curve)
    assert attention.seconds.at(attention.work(2000, 1000)) == pytest.approx(
        3 * (1e-5 + 2e-11 * 2000 * (1000 + extra)), rel=0.05
    )


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"pyarrow|gemm_perf\.parquet is missing"):
        _ = Tables(tmp_path, H200).gemm


@needs_tables
@pytest.mark.parametrize("device", [H200, A100], ids=lambda device: device.name)
def test_the_shipped_file_is_what_the_tables_give(device):
    model = "qwen2.5-vl-7b"
    again = to_json(composed(Tables(MEASURED, device), model)) + b"\n"
    assert again == (DATA / f"{device.name}_{model}.json").read_bytes()


@pytest.mark.skipif(not (TRACES / "distserve_sim").is_dir(), reason="no copy of distserve_sim")
def test_the_command_writes_distserves_files(tmp_path):
    assert main(["--distserve", str(TRACES / "distserve_sim"), "--out", str(tmp_path)]) == 0
    written = sorted(path.name for path in tmp_path.iterdir())
    assert len(written) == 4
    for name in written:
        assert (tmp_path / name).read_bytes() == (DATA / name).read_bytes()
