"""From measurements to the table and the panels: medians, spreads, who said the same."""

import pytest

from bench import plots
from bench.client import Outcome
from bench.peers.rounds import Found, Measured, Settled
from bench.peers.table import SHOWN, levels, notes, panels, table
from bench.summary import summarise


def measured(system, round_, clients, ttft_s, texts=None, status="ok"):
    """Two requests, 4 tokens each with 10 ms between them."""
    times = tuple(ttft_s + 0.01 * n for n in range(4))
    outcomes = [
        Outcome(0.0, times, 0.5, "ok"),
        Outcome(0.0, times if status == "ok" else (), 1.0, status, "what it said"),
    ]
    return Measured(
        system, round_, clients, summarise(outcomes), 0.002 * (round_ + 1), 0.1, texts or {}
    )


@pytest.fixture
def found():
    return Found(
        measured=[
            measured("A", 0, 1, 0.1, {"q": "x", "r": "y"}),
            measured("B", 0, 1, 0.2, {"q": "x", "r": "z"}),
            measured("B", 1, 1, 0.6, {"q": "x", "r": "y"}),
            measured("A", 1, 1, 0.3, {"q": "x", "r": "y"}),
            measured("A", 2, 1, 0.2, {"q": "x", "r": "y"}),
            measured("A", 0, 16, 0.4, {"q": "x"}),
            measured("C", 0, 16, 0.4, status="timeout"),
        ],
        settled={name: Settled("s", {}, {}) for name in ("A", "B", "C", "never measured")},
    )


def test_medians_and_spreads(found):
    rows = levels(found)
    assert [(row.concurrency, row.system) for row in rows] == [
        (1, "A"), (1, "B"), (16, "A"), (16, "C"),
    ]  # fmt: skip
    ttft = rows[0].figures["TTFT p50"]
    assert (ttft.low, ttft.median, ttft.high) == pytest.approx((100, 200, 300))
    assert rows[0].figures["TPOT p50"].median == pytest.approx(10)
    assert rows[0].figures["requests"].median == pytest.approx(2.0), "two in the second of the last"
    assert rows[0].late_p99_s == pytest.approx(0.006)


def test_who_said_the_same(found):
    first, second, _, third = levels(found)
    assert (first.same, first.answered) == (6, 6)
    assert (second.same, second.answered) == (3, 4), "one word of round 0 is another"
    assert third.same is None
    assert (third.answered, third.asked) == (1, 2)


def test_the_table_says_medians_and_what_was_not_answered(found):
    found.measured[-1] = Measured(
        "C", 0, 16, summarise([Outcome(0.0, (), 1.0, "timeout", "after 1 s")]), 0.0, 0.0, {}
    )
    head, _, *lines = table(levels(found)).splitlines()
    assert head.startswith("| clients | system | TTFT p50 (ms) | TPOT p50 (ms) | requests (/s) |")
    assert lines[0] == (
        "| 1 | A | 200.0 (100.0..300.0) | 10.00 (10.00..10.00) | 2.00 (2.00..2.00) "
        "| 6 of 6 | 6 of 6 |"
    )
    assert lines[3].count("none answered") == 3
    assert lines[3].endswith("| 0 of 1 | not told |")


def test_notes_are_marked_as_such():
    text = notes()
    assert "from notes, not this run" in text.splitlines()[0]
    assert "OpenVINO GenAI" in text
    assert "llama.cpp" in text
    assert {line.count("|") for line in text.splitlines()} == {6}


def test_panels_are_drawn(found, tmp_path):
    shown = panels(levels(found))
    assert [title.rpartition(" ")[0] for title in shown] == list(SHOWN)
    points = shown["TTFT p50 (ms)"]["A"]
    assert points[0] == pytest.approx((1, 200, 100, 300))
    assert [point[0] for point in points] == [1, 16]
    path = tmp_path / "new" / "plot.png"
    plots.draw_ranges(shown, path, "a title")
    assert path.read_bytes().startswith(b"\x89PNG")
