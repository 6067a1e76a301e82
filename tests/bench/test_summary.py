"""Figures from outcomes, checked against numbers worked out by hand."""

import pytest

from bench.client import Outcome
from bench.summary import Row, Spread, quantiles, summarise, table


def outcome(arrival, *times, status="ok"):
    return Outcome(arrival, times, times[-1] if times else arrival + 1.0, status)


def test_summary_of_two_answers_and_two_others():
    summary = summarise(
        [
            outcome(0.0, 0.1, 0.2, 0.4),
            outcome(1.0, 1.3),
            outcome(1.5, status="refused"),
            outcome(2.0, status="timeout"),
        ]
    )
    assert summary.outcomes == {"ok": 2, "refused": 1, "timeout": 1}
    assert summary.ttft_s.p50 == pytest.approx(0.1)
    assert summary.tpot_s.p50 == pytest.approx(0.15), "an answer of one token has no TPOT"
    assert summary.itl_s.p99 == pytest.approx(0.2)
    assert summary.total_s.p50 == pytest.approx(0.3)
    assert summary.duration_s == pytest.approx(3.0)
    assert summary.requests_per_s == pytest.approx(2 / 3)
    assert summary.tokens_per_s == pytest.approx(4 / 3)


def test_quantiles_of_one_to_a_hundred():
    found = quantiles(list(range(1, 101)))
    assert (found.p50, found.p90, found.p99) == (50, 90, 99)
    assert quantiles([]).p99 == 0.0


def test_rows_show_median_and_spread():
    runs = tuple(summarise([outcome(0.0, ttft, ttft + 0.1)]) for ttft in (0.3, 0.1, 0.2))
    row = Row("EPD1", 2.0, runs)
    assert row.spread(lambda run: run.ttft_s.p50) == Spread(0.2, 0.1, 0.3)
    text = table([row])
    assert "| 2 | EPD1 | 200 (100-300) |" in text
    assert text.endswith("| 0 of 3 |")
    assert len({line.count("|") for line in text.splitlines()}) == 1, "a table of equal columns"


def test_a_run_without_answers_has_no_figures():
    row = Row("EPD1", 2.0, (summarise([Outcome(0.0, (), 1.0, "refused", "HTTP 503: full")]),))
    assert row.runs[0].trouble == "HTTP 503: full"
    assert "| none | none |" in table([row])
