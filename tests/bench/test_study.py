"""Studies: settings, goodput of systems, and the file that runs live in."""

import io
import json

import msgspec
import pytest

from bench import study
from tests.bench.drawn_runs import drawn_run, drawn_study


@pytest.fixture(scope="module")
def drawn():
    return drawn_study(rates=(2.0, 8.0), seeds=(1, 2), duration_s=20.0)


def test_settings_pool_seeds_and_keep_the_order(drawn):
    found = study.settings(drawn)
    assert [(each.system.split()[0], each.rate) for each in found] == [
        ("Triptych", 2.0), ("Triptych", 8.0), ("Monolith", 2.0), ("Monolith", 8.0),
        ("E1,P3,D4", 2.0), ("E1,P3,D4", 8.0),
    ]  # fmt: skip
    first = found[0]
    assert first.pooled.requests == sum(each.requests for each in first.each)
    assert first.attainment.low <= first.attainment.mean <= first.attainment.high


def test_goodputs_name_every_system_once(drawn):
    found = study.goodputs(study.settings(drawn), 0.9)
    assert [each.system for each in found] == list(dict.fromkeys(r.system for r in drawn.runs))
    assert all(each.interval.low <= each.interval.high for each in found)


def test_a_file_of_runs_comes_back(drawn, tmp_path):
    path = tmp_path / "runs.json"
    study.write(path, drawn)
    json.loads(path.read_bytes())
    again = study.read(path)
    assert msgspec.structs.replace(again, runs=()) == msgspec.structs.replace(drawn, runs=())
    for before, after in zip(drawn.runs, again.runs, strict=True):
        assert len(after.rows) == len(before.rows) and len(after.busy) == len(before.busy)
        assert after.rows[0].route == before.rows[0].route
        assert after.rows[0].token_times_s == pytest.approx(before.rows[0].token_times_s, abs=1e-6)


def test_no_piece_is_larger_than_a_request():
    run = drawn_run(duration_s=20.0)
    longest = max(len(msgspec.json.encode(row)) for row in run.rows)
    pieces = list(study.pieces(study.Study("t", (run,))))
    assert len(pieces) > len(run.rows)
    assert max(map(len, pieces)) <= longest + 2


def test_a_file_that_is_none_says_so():
    with pytest.raises(ValueError, match="not a file of runs"):
        study.read(io.BytesIO(b'{"title": 3}'))
