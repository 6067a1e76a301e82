"""Requests to real servers in turns: every case at every size, as often as asked."""

import pytest

from bench.overlap.measure import Plan, measure, with_pictures
from bench.systems import TriptychServer
from tests.patience import PATIENCE_S


@pytest.mark.slow
async def test_every_case_answers_every_size_in_turns():
    settings = ["cluster.backend=process"]
    servers = {
        name: TriptychServer("oracle", name, settings, PATIENCE_S) for name in ("EPD1", "E1,P1,D1")
    }
    plan = Plan(repetitions=2, max_tokens=5)
    rows = await measure(servers, (1, 3), with_pictures(56), plan)
    cases = [(row.case, row.size) for row in rows]
    assert cases == [("EPD1", 1), ("E1,P1,D1", 1), ("EPD1", 3), ("E1,P1,D1", 3)]
    for row in rows:
        assert len(row.samples) == 2
        for sample in row.samples:
            assert 0 < sample.ttft_s <= sample.second_s
            assert sample.step_s >= 0
    tokens = {row.size: row.middle("prompt_tokens") for row in rows}
    assert tokens[3] == tokens[1] + 2 * (2 * 2 + 2), "four visual tokens, begin and end"
