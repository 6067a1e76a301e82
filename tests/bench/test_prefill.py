"""The bench of long prompts: against a real server, and what it makes of its figures."""

import json

import pytest

from bench import plots, prefill
from bench.__main__ import main
from bench.prefill import Plan, Row
from tests.checkpoints import DEMO

ROWS = [
    Row("dense", 4, 1055, (0.5, 0.4, 0.6), (1.0, 1.1, 1.2)),
    Row("local only", 4, 1055, (0.2, 0.3, 0.25), (0.8, 0.7, 0.9)),
]


def test_the_table_has_the_ratio_of_medians():
    assert prefill.table(ROWS).splitlines()[2:] == [
        "| 1055 | dense | 0.50 (0.40-0.60) | 1.00 | 1.10 (1.00-1.20) |",
        "| 1055 | local only | 0.25 (0.20-0.30) | 0.50 | 0.80 (0.70-0.90) |",
    ]


def test_the_picture_is_drawn(tmp_path):
    plots.draw_lines(prefill.panels(ROWS), tmp_path / "p.png", "one length")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_prompts_are_new_in_every_repetition():
    plan = Plan(side=56)
    assert plan.prompt(2, 0) == plan.prompt(2, 0) != plan.prompt(2, 1)


def test_a_number_of_pictures_that_is_none_is_refused(capsys):
    for text in ("4,x", "0", ""):
        with pytest.raises(SystemExit):
            main(["prefill", "--pictures", text])
        assert "is not whole numbers of at least 1" in capsys.readouterr().err


@pytest.mark.slow
def test_real_servers_in_turns(monkeypatch, capsys, tmp_path):
    own = {"dense": (), "xattention": ("sparse.selector=xattention",)}
    monkeypatch.setattr(prefill, "SYSTEMS", own)
    words = f"--model {DEMO} --pictures 1,2 --side 168 --repetitions 2 --out {tmp_path}"
    for setting in ("cluster.backend=process", "sparse.min_tokens=64", "sparse.tile=16"):
        words += f" --set {setting}"
    assert main(["prefill", *words.split()]) == 0
    lines = [line.split("|") for line in capsys.readouterr().out.splitlines() if line[:1] == "|"]
    assert [line[2].strip() for line in lines[2:]] == ["dense", "xattention"] * 2
    assert int(lines[2][1]) + 36 <= int(lines[4][1])
    (data,), (drawn,) = (list(tmp_path.glob(f"*-prefill.{kind}")) for kind in ("json", "png"))
    assert drawn.read_bytes().startswith(b"\x89PNG")
    for row in json.loads(data.read_text())["rows"]:
        assert len(row["prefill_s"]) == len(row["ttft_s"]) == 2
        assert min(row["prefill_s"]) > 0
