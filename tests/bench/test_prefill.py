"""The bench of long prompts: against a real server, and what it makes of its figures."""

import pytest

from bench import plots, prefill
from bench.prefill import Plan, Row
from bench.systems import TriptychServer
from tests.checkpoints import DEMO
from tests.patience import PATIENCE_S

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


@pytest.mark.slow
async def test_real_servers_in_turns():
    settings = ("cluster.backend=process", "sparse.min_tokens=64", "sparse.tile=16")
    sparse = {"dense": (), "xattention": ("sparse.selector=xattention",)}
    servers = {
        name: TriptychServer(str(DEMO), "EPD1", [*settings, *own], PATIENCE_S)
        for name, own in sparse.items()
    }
    rows = await prefill.measure(servers, Plan(pictures=(1, 2), side=168, repetitions=2))
    assert [(row.system, row.num_pictures) for row in rows] == [
        (name, count) for count in (1, 2) for name in sparse
    ]
    assert rows[0].prompt_tokens + 36 <= rows[2].prompt_tokens
    for row in rows:
        assert len(row.prefill_s) == len(row.ttft_s) == 2
        assert all(prefill_s > 0 for prefill_s in row.prefill_s)
