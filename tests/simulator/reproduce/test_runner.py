"""Targets end to end: one that passes, one that must miss, what the command makes of them."""

import json

import pytest

from cli.__main__ import main
from simulator.reproduce import document
from simulator.reproduce.runner import check_names, run
from tests.simulator.reproduce.targets import FIXED, ratio, target
from triptych.core.errors import ConfigError


def test_one_that_passes_and_one_that_must_miss(tmp_path):
    _, two = target(tmp_path, ratio(1.0) + ratio(0.01, says="far less TTFT"))
    heard = []
    result = run(two, None, heard.append)
    good, bad = (one.verdict(check) for one, check in result.checked(two))
    assert (good, bad) == ("pass", "miss")
    assert result.verdict(two) == "miss"
    assert result.surprises(two) == ["far less TTFT"]
    assert result.num_requests > 20
    assert heard.count("") == 2
    assert sum(text != "" for text in heard) == 2, "each system ran once"
    page = document.text([(two, result)], {"date": "today"})
    assert "Not understood yet." in page
    assert "1 targets: 0 pass, 1 miss, 0 absent." in page


def test_a_miss_with_a_reason_is_no_surprise(tmp_path):
    _, known = target(tmp_path, ratio(0.01, miss="It cannot be."))
    result = run(known)
    assert result.surprises(known) == []
    assert "It cannot be." in document.text([(known, result)], {})


def test_the_command(tmp_path, capsys):
    path, _ = target(tmp_path, ratio(1.0))
    page, out = tmp_path / "page.md", tmp_path / "out.json"
    words = ["reproduce", "--targets", str(path.parent), "--processes", "1"]
    words += ["--results", str(tmp_path / "kept")]
    assert main([*words, "--page", str(page), "--json", str(out)]) == 0
    assert "pass" in capsys.readouterr().out
    assert "## 1. Two instances are faster than one" in page.read_text()
    (one,) = json.loads(out.read_bytes())["targets"]
    assert one["verdict"] == "pass"
    assert 0.0 < one["checks"][0]["value"] <= 1.0
    assert main([*words, "--resume"]) == 0
    target(tmp_path, ratio(0.01))
    assert main([*words, "--resume"]) == 1, "the file is another one: it is run again"
    assert "missed: TTFT" in capsys.readouterr().out


def test_what_is_not_at_hand_is_absent(tmp_path):
    head = 'trace = "nowhere.jsonl"' + FIXED
    check = '[[checks]]\nsays = "hits"\nmeasure = "hit_ratio"\nlow = 1\n'
    _, wants = target(tmp_path, check, head)
    for traces in (None, tmp_path):
        result = run(wants, traces)
        assert result.verdict(wants) == "absent"
        assert "nowhere.jsonl" in result.outcomes[0].note
        assert result.surprises(wants) == []
    (tmp_path / "nowhere.jsonl").write_text('{"hash_ids":[1,2]}\n{"hash_ids":[1,2]}\n')
    assert run(wants, tmp_path).outcomes[0].value == 50.0


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        ({"measure": "beauty"}, "beauty"),
        ({"figure": "ttft.worst"}, "ttft.worst"),
        ({"measure": "planner_share", "figure": "ttft.mean"}, "proportional"),
    ],
)
def test_what_there_is_not_is_named(tmp_path, words, wrong):
    _, unknown = target(tmp_path, ratio(1.0, **words))
    with pytest.raises(ConfigError, match=wrong):
        check_names(unknown)
