"""Measures against what can be counted by hand."""

import pytest

from bench.run import Row, Run
from simulator.reproduce import layouts
from simulator.reproduce.lab import Lab
from simulator.reproduce.measures import MEASURES
from simulator.reproduce.planning import problem, proposed
from simulator.reproduce.statistics import STATISTICS
from simulator.reproduce.target import layouts_of, read
from tests.simulator.reproduce.targets import FIXED, ratio, target
from triptych.core.errors import ConfigError

QUEUE = """
number = 2
title = "Queue"
source = "x"
claim = "x"
setting = "x"
[scenario]
costs = "h200:qwen2.5-vl-7b"
workload = "synthetic:fixed,images=0,text=512,output=1"
rates = [60]
duration_s = 8
machines = { hop_s = 0.0 }
systems = [{ name = "EPD1", topology = "EPD1" }]
set = ["router.placement=round_robin", "engine.token_budget=512", "engine.chunk_tokens=512"]
[[checks]]
says = "error"
measure = "recursion_error"
high = 0.002
"""

LAYOUTS = """
number = 7
title = "Layouts"
source = "x"
claim = "x"
setting = "x"
layouts = ["EPD", "E+P+D"]
num_gpus = 3
[grid]
ttft_s = [0.5, 2.0]
tpot_s = [0.05]
[scenario]
costs = "a100:qwen2.5-vl-7b"
workload = "synthetic:fixed,output=16"
rates = [4, 16, 48]
duration_s = 2
systems = []
[[checks]]
says = "planner"
measure = "planner_share"
figure = "proportional"
low = 0.1
[[checks]]
says = "gain"
measure = "grid_gain"
to = "E1,P1,D1"
low = 1.0
[[checks]]
says = "winners"
measure = "grid_winners"
low = 1
[[checks]]
says = "per GPU"
measure = "goodput_per_gpu"
low = 0.1
"""


def lab(tmp_path, text):
    path = tmp_path / "07-x.toml"
    path.write_text(text)
    found = read(path)
    return Lab(found, None, lambda _: None), found


def test_a_prefill_instance_is_the_queue_of_its_arrivals(tmp_path):
    there, found = lab(tmp_path, QUEUE)
    assert MEASURES["recursion_error"](there, found.checks[0]) < 0.002
    assert MEASURES["queue_error"](there, found.checks[0]) < 0.5, "few requests: only about"


def test_layouts_are_searched_and_judged(tmp_path):
    there, found = lab(tmp_path, LAYOUTS)
    values = [MEASURES[check.measure](there, check) for check in found.checks]
    share, gain, winners, per_gpu = values
    assert 0.1 < share <= 1.0
    assert gain >= 1.0
    assert winners in (0.0, 1.0, 2.0)
    best = max(there.goodput("all", system).crossing.rate for system in found.systems("all", "*"))
    assert per_gpu == pytest.approx(best / 3)
    cells = list(layouts.grid(there, found.checks[1]))
    assert [cell.slo.ttft_s for cell in cells] == [0.5, 2.0]
    strict, relaxed = (cell.goodputs for cell in cells)
    assert set(strict) == {"EPD3", "E1,P1,D1"}
    assert all(strict[name] <= relaxed[name] for name in strict)


def test_a_planner_is_told_what_the_scenario_is(tmp_path):
    there, found = lab(tmp_path, LAYOUTS)
    asked = problem(found.scenarios["all"], 3)
    assert asked.num_gpus == 3
    assert all(shape.pictures == (576,) or len(shape.pictures) == 1 for shape in asked.shapes)
    assert {shape.output for shape in asked.shapes} == {16}
    assert set(proposed(there, "all", "proportional")) == {"E1,P1,D1", "EP2,D1", "ED2,P1"}


def row(number, arrival_s, times, session=""):
    return Row(
        id=f"{number}", arrival_s=arrival_s, slo="x", ttft_slo_s=1.0, tpot_slo_s=None,
        num_images=0, image_tokens=0, prompt_tokens=1, status="ok", end_s=times[-1],
        token_times_s=tuple(times), session=session,
    )  # fmt: skip


def test_statistics_by_hand():
    rows = (row(1, 1.0, [2.0, 3.0], "a"), row(2, 5.0, [5.5, 6.0], "a"), row(3, 6.0, [7.0, 11.0]))
    run = Run("s", "w", 1.0, 1, 1, 10.0, rows)
    assert STATISTICS["makespan"]([run]) == 10.0
    assert STATISTICS["tokens_per_s"]([run, run]) == pytest.approx(0.6)
    assert STATISTICS["later_ttft.mean"]([run]) == pytest.approx(0.5)
    assert STATISTICS["ttft.mean"]([run]) == pytest.approx(2.5 / 3)


def test_layouts_of_a_family():
    assert layouts_of("EPD", 8) == ["EPD8"]
    assert layouts_of("E+PD", 3) == ["E1,PD2", "E2,PD1"]
    assert len(layouts_of("E+P+D", 8)) == 21
    assert layouts.family("E2,P1,D14") == "E+P+D"


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        (FIXED, "checks"),
        (FIXED + ratio(1.0, case="other"), "no case"),
        (FIXED + ratio(1.0).replace("high = 1.0", ""), "at least one end"),
        ("number = x", "Invalid"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path, text, wrong):
    with pytest.raises(ConfigError, match=wrong):
        target(tmp_path, "", text)


def test_an_unknown_system_is_named(tmp_path):
    _, found = target(tmp_path, ratio(1.0, of="three"))
    with pytest.raises(ConfigError, match="three"):
        MEASURES["ratio"](Lab(found, None, lambda _: None), found.checks[0])
