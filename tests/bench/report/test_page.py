"""The page: small whatever it shows, and whole in a real browser."""

import html
import json
import re

import msgspec
import pytest

from bench.report import page, terminal
from bench.report.curves import SHARES
from bench.report.document import document
from bench.report.timeline import timeline
from bench.run import Busy, Queue, Run
from bench.study import Study
from tests.bench.drawn_runs import drawn_run, drawn_study
from tools import shoot

CHARTS = 8
"""Attainment, goodput twice, effective throughput, three CDFs, phases: at least."""


@pytest.fixture(scope="module")
def drawn():
    return drawn_study(rates=(2.0, 6.0, 10.0), seeds=(1, 2), duration_s=20.0)


def test_everything_that_is_promised_is_in_it(drawn):
    found = document(drawn)
    assert len(found["sweep"]) == 9
    assert {each["level"] for each in found["goodput"]} == {0.9, 0.95, 0.99}
    assert all(len(line["ttft"]) == len(SHARES) for line in found["curves"] if line["answered"])
    assert {part["at"] for part in found["phases"]} == {"mean", "p50", "p90", "p99"}
    assert found["timelines"][0]["changes"][0]["detail"] == "prefill to decode"
    assert found["scenario"] == drawn.scenario
    assert found["fits"][0]["mean_error"] == 0.041
    assert len({line["system"] for line in found["timelines"]}) == 3


def test_curves_ascend_and_end_at_the_greatest_value(drawn):
    for line in document(drawn)["curves"]:
        for name in ("ttft", "tpot", "itl"):
            assert line[name] == sorted(line[name])


def test_a_study_without_runs_is_refused():
    with pytest.raises(ValueError, match="runs"):
        document(Study("nothing", ()))


def test_text_of_a_study_cannot_leave_its_place():
    run = drawn_run("</script><b>&", duration_s=12.0)
    text = page.page(Study("</title><script>x()", (run,), scenario="</script><script>alert(1)"))
    assert text.count("<script") == 2, "the data and the code"
    assert "</script><b>" not in text


def test_the_page_fetches_nothing(drawn):
    text = page.page(drawn)
    assert "default-src 'none'" in text
    outside = re.findall(r"""(?:src|href)\s*=\s*["']?(?!#)(?:https?:)?//[^"'\s]+""", text)
    assert outside == []


@pytest.mark.slow
def test_a_hundred_thousand_requests_and_jobs_stay_small():
    run = drawn_run(rate=8.0, duration_s=100.0)
    times = [each.arrival_s for each in run.rows]
    rows = [msgspec.structs.replace(r, token_times_s=r.token_times_s[:9]) for r in run.rows]
    long = 140 * tuple(rows)
    busy = tuple(
        Busy(f"decode-{number % 128}", "decode", step * 0.1, step * 0.1 + 0.08)
        for number in range(128)
        for step in range(900)
    )
    queues = tuple(Queue(f"decode-{n}", at_s, 3, 1) for n in range(128) for at_s in times[::8])
    many = msgspec.structs.replace(run, rows=long, busy=busy, queues=queues, changes=())
    assert len(many.rows) > 100_000
    assert len(page.page(Study("many", (many,)))) < 2_000_000


def test_bins_say_how_busy_an_instance_was():
    busy = (Busy("encode-0", "encode", 0.0, 5.0), Busy("encode-10", "encode", 5.0, 7.5),
            Busy("encode-2", "encode", 0.0, 10.0))  # fmt: skip
    run = Run("S", "w", 1.0, 0, 1.0, 10.0, (), busy=busy)
    found = timeline(run)
    assert [each["name"] for each in found["rows"]] == ["encode-0", "encode-2", "encode-10"]
    import base64

    half = base64.b64decode(found["bins"]["data"]["0,0"])
    assert sum(half) == pytest.approx(255 * len(half) / 2, rel=0.01)
    assert set(base64.b64decode(found["bins"]["data"]["1,0"])) == {255}
    assert found["exact"][0]["rows"]["2"] == [0, 50_000, 25_000, 1]


def test_a_run_that_tells_nothing_has_no_timeline():
    assert timeline(Run("S", "w", 1.0, 0, 1.0, 10.0, ())) == {}


def test_the_table_marks_what_must_not_be_used(drawn):
    late = msgspec.structs.replace(drawn.runs[0], invalid="the client was late: 50 ms")
    study = msgspec.structs.replace(drawn, runs=(late, *drawn.runs[1:]))
    text = terminal.table(study)
    assert "NOT TO BE USED" in text and "50 ms" in text
    assert document(study)["invalid"]
    first = text.split("\n\n")[0].splitlines()
    assert len({len(line) for line in first}) == 1, "aligned"
    assert "goodput" in text and "<" in text


@pytest.mark.slow
@pytest.mark.skipif(shoot.browser() is None, reason="needs Chromium, and none is installed")
def test_a_browser_draws_every_chart_and_complains_of_nothing(drawn, tmp_path):
    path = tmp_path / "report.html"
    page.write(path, drawn)
    dom, console = shoot.look(path)
    assert console == []
    drawings = re.findall(r"<svg[^>]*role=\"img\".*?</svg>", dom, re.DOTALL)
    assert len(drawings) >= CHARTS
    for drawing in drawings:
        assert re.search(r"<(?:path class=\"series\"|rect class=\"bar\")", drawing), drawing[:200]
        assert "NaN" not in drawing and "Infinity" not in drawing
    assert re.search(r'data-drawn="\d+"', dom), "the canvas of the instances"
    assert html.escape(drawn.title) in dom
    picture = tmp_path / "report.png"
    shoot.shoot(path, picture, "dark", (1200, 1600))
    assert picture.stat().st_size > 50_000


@pytest.mark.slow
@pytest.mark.skipif(shoot.browser() is None, reason="needs Chromium, and none is installed")
def test_one_run_without_any_detail_is_a_page_too(tmp_path):
    run = drawn_run(duration_s=15.0)
    rows = tuple(msgspec.structs.replace(row, phases={}, route=()) for row in run.rows)
    bare = msgspec.structs.replace(run, rows=rows, busy=(), queues=(), changes=(), joules=None)
    refused = (msgspec.structs.replace(row, status="refused", token_times_s=()) for row in rows)
    nothing = msgspec.structs.replace(bare, system="refuses all", rows=tuple(refused))
    path = tmp_path / "report.html"
    page.write(path, Study("bare", (bare, nothing)))
    dom, console = shoot.look(path)
    assert console == []
    assert "NaN" not in dom.split("</main>")[0].split("<main>")[1]
    json.loads(re.search(r'id="data">(.*?)</script>', path.read_text(), re.DOTALL)[1])
