"""The benchmark of a GPU at toy sizes on the CPU: every row, its floor, and what is left out."""

import contextlib
import io
import json
import math
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import tests.executor.interpreter  # noqa: F401  (repairs it)
from cli.gpu import attention, flex, groups, peer, table, timing, whole, work
from cli.gpu.__main__ import main
from cli.gpu.dummy import DummyWeights, Language
from cli.gpu.groups import Budget, Case, Group
from cli.gpu.kit import Setup, Switch
from cli.gpu.rows import Found, Rates, Row, Spread, Work, row_of
from cli.gpu.sizes import REAL, TOY, Picture, told
from tests.house.sources import ROOT
from triptych.executor.models.vision import VisionTower
from triptych.executor.models.vision_plan import plan_patches
from triptych.executor.operations import PLAIN

CPU = torch.device("cpu")
TEXT, VISION = TOY.spec.text, TOY.spec.vision
RATES = Rates(1e12, 1e9)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Exit status, table and JSON of a whole toy run, and its plot."""
    folder, shown = tmp_path_factory.mktemp("gpu"), io.StringIO()
    words = ["--toy", "--out", str(folder / "sub" / "rows.json"), "--plot", str(folder / "p.png")]
    with contextlib.redirect_stdout(shown):
        status = main(words)
    found = json.loads((folder / "sub" / "rows.json").read_text())
    return status, shown.getvalue(), found, folder / "p.png"


def test_every_row_has_its_figures(done):
    status, shown, found, _ = done
    assert status == 0
    expected = [
        (group.name, case.name)
        for group in (*whole.groups(TOY), attention.group(TOY), peer.group(TOY))
        for case in group.cases
    ]
    rows = {(row["group"], row["name"]): row for row in found["rows"]}
    assert set(expected) <= set(rows)
    assert len({name for group, name in rows if group == "memory"}) == 12
    for (group, name), row in rows.items():
        assert not row["is_broken"], row
        seen = row["measured"]
        assert 0 < seen["low"] <= seen["median"] <= seen["high"] < 60
        assert row["floor_s"] > 0 and math.isfinite(row["floor_s"])
        assert row["share"] == pytest.approx(row["floor_s"] / seen["median"])
        assert (row["target"] is None) == (row["verdict"] == "")
        assert f"| {Row(group, name).label} " in shown
    assert found["rates"]["flops_per_s"] > 0 < found["rates"]["bytes_per_s"]
    assert "targets: " in shown and "0 of 51 rows left out" in shown


def test_ours_stand_beside_others(done):
    rows = {row["name"]: row["beside"] for row in done[2]["rows"] if row["group"] != peer.NAME}
    for name in ("prefill 16", "prefill 32", "decode 1 x 8", "decode 2 x 8"):
        assert rows[name][peer.NAME] > 0
    assert rows["dense 64"][attention.SDPA] > 0
    assert rows["sparse 128 at 12.5%"][attention.FLEX] == "compiled on CUDA only"


def test_targets_are_those_of_the_issue(done):
    found = {row["name"]: row["target"] for row in done[2]["rows"] if row["target"]}
    targets = {name.split()[0]: target for name, target in found.items()}
    assert targets == {
        "decode": 0.8, "paged": 0.8, "prefill": 0.6, "dense": 0.6, "encode": 0.6, "sparse": 0.8,
        "gather": 0.85, "scatter": 0.85,
    }  # fmt: skip


def test_a_plot_is_written(done):
    assert done[3].read_bytes().startswith(b"\x89PNG")


def test_no_device_is_no_failure(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main([]) == 0
    assert capsys.readouterr().out.startswith("skipped: this machine has no CUDA device")


def test_wrong_words_are_refused(monkeypatch, capsys):
    assert main(["--toy", "--only", "nothing"]) == 2
    assert "no row has that name" in capsys.readouterr().err


def test_rows_beyond_the_budget_are_skipped(capsys):
    assert main(["--toy", "--minutes", "0", "--only", "decode 1"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("skipped: beyond 0 min") == 4 and "0 of 0 met; 4 of 4 rows" in shown


def test_a_case_that_would_end_too_late_is_not_begun():
    short, long = Case("short", None, 1.0), Case("long", None, 90.0)
    assert Budget(1.0, is_toy=False).reason(short) == ""
    assert Budget(1.0, is_toy=False).reason(long) == "skipped: beyond 1 min"
    assert Budget(1.0, is_toy=True).reason(long) == ""


def test_what_does_not_fit_is_left_out_with_its_reason(monkeypatch, capsys):
    block = TOY.block_size * work.kv_bytes(TEXT, 4)
    monkeypatch.setattr(whole, "kv_room", lambda setup: 2.5 * block)
    assert main(["--toy", "--only", "decode", "--no-transformers"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| decode")]
    skipped = [line.split("|")[1].strip() for line in lines if "[" in line]
    fits = {"decode 1 x 8", "decode 2 x 8", "decode 1 x 16", "decode 2 x 16", "decode 1 x 24"}
    assert (
        len(lines) == 12 and set(skipped) == {whole.decode_name(*one) for one in TOY.decodes} - fits
    )


@contextlib.contextmanager
def breaking(setup):
    def measure(what):
        if what is None:
            raise ValueError("no such thing\nat all")
        return Found(Spread(2.0, 1.0, 3.0, 3), [Work(1e12, 0.0)], 0.4)

    yield measure


def test_a_broken_row_costs_no_other():
    setup = Setup(CPU, torch.float32, TOY, None, None, RATES, False)
    group = Group("odd", [Case("bad", None, 1.0), Case("good", 1, 1.0)], breaking)
    bad, good = groups.run([group], setup, Budget(1.0, is_toy=True))
    assert bad.is_broken and bad.note == "failed: ValueError: no such thing"
    assert (good.share, good.verdict, good.bound) == (0.5, "met", "flops")
    shown = table.table([bad, good], RATES, "a machine")
    assert "[1] failed: ValueError" in shown and "1 of 1 met; 1 of 2 rows left out" in shown


def test_floors_add_the_longer_of_each_phase():
    seen = Spread(4.0, 4.0, 4.0, 1)
    row = row_of("g", "n", Found(seen, [Work(1e12, 5e8), Work(1e11, 1e9)], 0.6), RATES)
    assert (row.floor_s, row.bound, row.share, row.verdict) == (2.0, "both", 0.5, "missed")
    row = row_of("g", "n", Found(seen, [Work(0.0, 1e9)], 0.8, reached=0.9), RATES)
    assert (row.floor_s, row.bound, row.verdict) == (1.0, "bytes", "met")
    assert Row("g", "n").share is None and Row("g", "n").verdict == ""


def products(call):
    """Floating-point operations of the matrix products of ``call``, without attention."""
    with FlopCounterMode(display=False) as counter:
        call()
    counted = counter.get_flop_counts()["Global"]
    return sum(count for name, count in counted.items() if "mm" in str(name))


def language():
    weights = DummyWeights(torch.float32, CPU, PLAIN)
    return Language(TOY.spec, weights, block_size=TOY.block_size, num_blocks=8), weights


def test_floors_count_what_the_decoder_computes():
    made, weights = language()
    small = weights.num_bytes - work.language_bytes(TEXT, 4)
    assert 0 < small < 0.02 * weights.num_bytes  # biases and norms
    plan = made.decodes(3, 20)
    expected = work.decode(TEXT, 3, 20, 4)[0].flops
    expected -= TEXT.num_layers * work.attention_flops(TEXT, 3 * 20)
    assert products(lambda: made.decoder.logits(plan)) == expected
    plans = made.chunks(50, 32)
    phases = work.prefill(TEXT, 50, 32, 4)
    assert [len(one.segments[0].tokens) for one in plans] == [32, 18] and len(phases) == 4
    assert products(lambda: [made.decoder.logits(one) for one in plans]) == sum(
        one.flops for one in phases[::2]
    )
    pairs = sum(one.flops for one in phases[1::2]) / TEXT.num_layers
    assert pairs == work.attention_flops(TEXT, 50 * 51 / 2)


@pytest.mark.parametrize("one", [Picture(1, 4, 4), Picture(2, 10, 22)])
def test_floors_count_what_the_tower_computes(one):
    tower = VisionTower(VISION, DummyWeights(torch.float32, CPU, PLAIN))
    patches = torch.randn(one.number * one.rows * one.columns, VISION.patch_values)
    grids = [(1, one.rows, one.columns)] * one.number
    matrices, attended = work.encode(VISION, one, 4)
    assert products(lambda: tower(patches, grids)) == matrices.flops
    plan = plan_patches(grids, VISION.merge_size, VISION.window_patches)
    pairs = sum(run.spans * run.length**2 for runs in (plan.whole, plan.windows) for run in runs)
    assert attended.flops == 4 * VISION.hidden_size * pairs


def test_real_sizes_are_those_of_the_model():
    text, vision = REAL.spec.text, REAL.spec.vision
    assert work.language_bytes(text, 2) / 2e9 == pytest.approx(7.61, abs=0.01)
    assert work.kv_bytes(text, 2) == 57344
    assert [told(one) for one in REAL.prefills] == ["1k", "8k", "32k", "128k"]
    assert whole._picture_name(REAL.pictures[-1], REAL) == "encode 32 of 1288x728"
    assert len(work.window_lengths(vision, Picture(1, 52, 92))) == 7 * 12
    config = peer.values(REAL.spec)["vision_config"]
    assert config["window_size"] == 112 and config["fullatt_block_indexes"] == [7, 15, 23, 31]


def test_kept_tiles_are_of_the_density_and_causal():
    kept = attention.kept_tiles(3, 64, 0.25, CPU)
    assert kept.diagonal(dim1=1, dim2=2).all() and not kept.triu(1).any()
    assert int(kept.sum()) / (3 * 64 * 65 / 2) == pytest.approx(0.25, abs=0.01)
    assert not kept[0].equal(kept[1])


def test_flex_lists_say_what_tiles_say():
    tiles = attention.kept_tiles(2, 5, 0.5, CPU)
    mask = flex.mask_of(tiles)
    assert mask.to_dense()[0].bool().equal(tiles) and mask.shape == (1, 2, 640, 640)
    assert (mask.kv_num_blocks == 1).all()  # its own is masked, the others are whole
    assert mask.kv_indices[0, :, :, 0].equal(torch.arange(5).int().expand(2, -1))
    assert mask.full_kv_num_blocks[0].equal((tiles.sum(-1) - 1).int())
    assert mask.mask_mod(0, 0, torch.tensor(3), torch.tensor([3, 4])).tolist() == [True, False]


def test_a_timer_warms_and_repeats():
    calls, warmed = [], []
    seen = timing.Timer(CPU, 0.5)(lambda: calls.append(1), warm=lambda: warmed.append(1))
    assert seen.runs == timing.MOST and len(calls) == timing.MOST + 1 and warmed == [1]
    assert 0 < seen.low <= seen.median <= seen.high


@pytest.mark.skipif(find_spec("triton") is None, reason="no Triton for this platform")
@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is for a CPU")
@pytest.mark.parametrize("only", ["memory: norm", "decode 1 x 8"])
def test_kernels_are_measured_where_they_run(only, capsys):
    assert main(["--toy", "--kernels", "triton", "--only", only, "--no-transformers"]) == 0
    shown = capsys.readouterr().out
    assert "kernels triton" in shown and "0 of 1 rows left out" in shown
    assert ("not captured" in shown) == ("decode" in only)


def test_a_switch_passes_graphs_by():
    pytest.importorskip("triton", reason="no Triton for this platform")
    from cli.gpu.switched import SwitchedGraphs

    class Inner:
        def logits(self, work):
            return work

    switch = Switch()
    made = SwitchedGraphs(Inner(), switch)
    assert made.logits("work") == "work"
    switch.is_on = False
    assert made.logits("work") is None


def test_it_needs_little():
    """A machine with a GPU may have PyTorch and Triton, and little else."""
    seldom = ("ray", "grpc", "PIL", "matplotlib", "transformers", "tokenizers", "starlette")
    code = f"import sys, cli.gpu.__main__; print([n for n in {seldom} if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
