"""Contests: fair by code, resumable, told in rows."""

import msgspec
import pytest

from bench.goodput import Crossing, Interval
from bench.study import Goodput
from cli import compare
from simulator.contest import ledger, match, table
from simulator.contest.contest import (
    Contest,
    Entry,
    Load,
    cells,
    check,
    quick,
    read,
    short,
    with_traces,
)
from simulator.contest.layouts import layouts, multiplied
from simulator.contest.ledger import Ledger, key_of
from simulator.contest.match import Result
from simulator.scenario import System
from tests.house.sources import ROOT
from triptych.core.errors import ConfigError

HEAVY = Load("heavy", "synthetic:image_heavy")


def contest(*entries: Entry, **changes) -> Contest:
    entries = entries or (Entry("monolith", topology="EPD2"),)
    given = {"num_gpus": (2,), "loads": (HEAVY,), "seeds": (1, 2), "duration_s": 3.0,
             "plan_duration_s": 2.0, "warmup_s": 0.5, "tolerance": 0.5} | changes  # fmt: skip
    return Contest("test", "h200:qwen2.5-vl-7b", systems=entries, **given)


def result(cell, rate, key="", low=None, high=None, kind="crossed") -> Result:
    low, high = low or rate, high or rate
    goodput = Goodput(cell.entry.name, 0.9, Crossing(rate, kind, rate, 2 * rate, rate),
                      Interval(rate, low, high), cell.num_gpus, 2)  # fmt: skip
    return Result(key or key_of(cell), cell.load.name, cell.load.workload, cell.entry.name,
                  cell.num_gpus, "EPD2", ("engine.token_budget=2048",), goodput,
                  ((rate, (1.0, 1.0)),), {"ttft": 0.2, "tpot": 0.0}, (), 10, 1.0)  # fmt: skip


@pytest.mark.parametrize("name", ["h200", "scaling", "ablation"])
def test_files_of_the_examples_are_contests(name):
    found = with_traces(read(ROOT / "examples" / "compare" / f"{name}.toml"), None)
    for less in (short(found), quick(found)):
        check(less)
        assert less.seeds == found.seeds[: len(less.seeds)]
    for load, settled in zip(found.loads, short(found).loads, strict=True):
        assert settled.duration_s == (load.short_s or load.duration_s)
    assert len(list(cells(found))) == (len(found.num_gpus) * len(found.loads) * len(found.systems))


def test_the_command_takes_less_of_a_contest():
    file = str(ROOT / "examples" / "compare" / "h200.toml")
    only = ["--only", "monolith (Sarathi),image-heavy"]
    whole, less = (
        compare._contest(compare.parser().parse_args([file, *only, *more]))
        for more in ([], ["--short"])
    )
    assert (len(whole.seeds), len(less.seeds)) == (3, 2)
    assert less.duration_s < whole.duration_s
    assert [[one.name for one in part] for part in (less.systems, less.loads)] == [
        ["monolith (Sarathi)"], ["image-heavy"],
    ]  # fmt: skip


def test_runs_of_large_fleets_may_be_shorter(capsys):
    file = str(ROOT / "examples" / "compare" / "h200.toml")
    words = compare.parser().parse_args([file, "--short", "--seconds", "8"])
    less = compare._contest(words)
    check(less)
    assert {cell.duration_s for cell in cells(less)} == {8.0}
    assert (less.plan_duration_s, less.warmup_s) == (8.0, 2.0)
    assert "--short --seconds 8" in " ".join(compare._options(words))
    assert compare.main([file, "--seconds", "0"]) == 2
    assert "seconds" in capsys.readouterr().err


def test_the_comparison_names_what_it_compares():
    found = read(ROOT / "examples" / "compare" / "h200.toml")
    assert [entry.name for entry in found.systems] == [
        "Triptych", "EPDServe", "ModServe", "TriInfer", "ElasticMM", "DistServe",
        "monolith (Sarathi)",
    ]  # fmt: skip
    assert all(entry.does for entry in found.systems)
    assert all(entry.lacks for entry in found.systems[1:])
    assert len(found.seeds) >= 3 and found.plan_seed not in found.seeds


def test_a_load_without_its_trace_is_replaced_or_left_out():
    loads = (Load("a", "servegen:{traces}", otherwise="synthetic:servegen"),
             Load("b", "azure_lmm:{traces}"))  # fmt: skip
    found = with_traces(contest(loads=loads), None)
    assert [load.workload for load in found.loads] == ["synthetic:servegen"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (Entry("x"), "needs a planner"),
        (Entry("x", planner="crystal ball"), "planner is none of"),
        (Entry("x", topology="EPD2", set=("cache.prefix=false",)), "cache.prefix is on for all"),
    ],
)
def test_unfair_or_empty_systems_are_refused(entry, message):
    with pytest.raises(ConfigError, match=message):
        check(contest(entry))


def test_a_layout_is_not_measured_with_the_seed_that_chose_it():
    with pytest.raises(ConfigError, match="plan_seed"):
        check(contest(plan_seed=1))


def test_every_proposed_layout_takes_the_gpus_of_its_cell():
    file = read(ROOT / "examples" / "compare" / "h200.toml")
    fair = with_traces(msgspec.structs.replace(file, loads=file.loads[3:4], keep=1), None)
    for cell in cells(fair):
        found = layouts(cell)
        assert 1 <= len(found) <= (1 + len(cell.entry.families)) * fair.keep
        assert len({(one.system.topology, one.system.set) for one in found}) == len(found)
        for layout in found:
            match.scenario_of(cell, layout.system, (1,), 10.0)
            assert layout.system.roles == cell.entry.roles


@pytest.mark.parametrize("topology", ["EPD1", "EPD3", "E1,PD2"])
def test_another_number_of_gpus_is_refused(topology):
    [cell] = cells(contest(Entry("greedy", topology=topology)))
    with pytest.raises(ConfigError, match="takes"):
        match.scenario_of(cell, System("greedy", topology), (1,), 3.0)


def test_layouts_of_few_gpus_are_multiplied():
    assert multiplied("E1,PD3", 8) == "E8,PD24"
    [cell] = cells(contest(Entry("x", families=("EPD",)), num_gpus=(8,), plan_gpus=2))
    assert {layout.system.topology for layout in layouts(cell)} == {"EPD8"}
    [cell] = cells(contest(Entry("x", families=("EPD",)), num_gpus=(3,), plan_gpus=2))
    with pytest.raises(ConfigError, match="no multiple"):
        layouts(cell)


def test_modality_groups_follow_the_load():
    entry = Entry("x", topology="EPD2", groups_by_load=True)
    [cell] = cells(contest(entry))
    assert "router.placement=least_loaded" in layouts(cell)[0].system.set
    [cell] = cells(contest(entry, loads=(Load("light", "synthetic:image_light"),)))
    settings = layouts(cell)[0].system.set
    assert "router.placement=modality" in settings
    assert any(setting.startswith("router.picture_share=0.") for setting in settings)


def test_a_cell_is_measured_and_the_same_again():
    [cell] = cells(contest(duration_s=1.0, plan_duration_s=1.0, warmup_s=0.2))
    first, run = match.run(cell, "k")
    second, again = match.run(cell, "k")
    assert msgspec.structs.replace(first, cpu_s=0.0) == msgspec.structs.replace(second, cpu_s=0.0)
    assert run == again and run.num_gpus == 2
    assert first.per_gpu > 0 and first.goodput.num_seeds == 2
    assert all(len(shares) == 2 for _, shares in first.points)
    assert run.rate in dict(first.points)


def test_an_interrupted_contest_continues(tmp_path, monkeypatch):
    brief = {"seeds": (1,), "duration_s": 1.0, "warmup_s": 0.2}
    both = Entry("a", topology="EPD2"), Entry("b", topology="EPD2")
    wanted = list(cells(contest(*both, **brief)))
    _, shown = match.run(wanted[0], "k")
    asked = []

    def run(cell, key, on_progress=None):
        asked.append(cell.entry.name)
        if cell.entry.name == "b" and asked.count("b") == 1:
            raise KeyboardInterrupt
        return result(cell, 3.0, key), shown

    monkeypatch.setattr(ledger.match, "run", run)
    kept = Ledger(tmp_path / "results.jsonl")
    with pytest.raises(KeyboardInterrupt):
        ledger.measure(kept, wanted, 1)
    with (tmp_path / "results.jsonl").open("ab") as file:
        file.write(b'{"key": "half a li')
    found = ledger.measure(kept, wanted, 1)
    assert asked == ["a", "b", "b"]
    assert set(found) == set(kept.results()) == {key_of(cell) for cell in wanted}
    assert len(kept.runs([key_of(cell) for cell in wanted])) == 2
    ledger.measure(kept, wanted, 1)
    assert asked == ["a", "b", "b"]


def test_a_key_is_of_what_a_result_depends_on():
    [cell] = cells(contest())
    [told] = cells(contest(Entry("monolith", topology="EPD2", does="more words")))
    [longer] = cells(contest(duration_s=4.0))
    assert key_of(cell) == key_of(told) != key_of(longer)


def test_rows_have_the_best_in_bold_and_a_margin():
    fair = contest(Entry("ours", topology="EPD2"), Entry("theirs", topology="EPD2"))
    ours, theirs = cells(fair)
    text = table.goodputs(fair, [result(ours, 6.0, low=5.0, high=7.0), result(theirs, 4.0)])
    row = text.splitlines()[2]
    assert "**3 (2.5 to 3.5)**" in row and "+50 %" in row and "2 (2 to 2)" in row
    assert "ttft 20%" in table.layouts(fair, [result(ours, 6.0)])
    assert "-" in table.goodputs(fair, [result(theirs, 4.0)]).splitlines()[2]


def test_efficiency_is_over_the_fewest_gpus():
    fair = contest(num_gpus=(2, 8))
    two, eight = cells(fair)
    results = [result(two, 10.0), result(eight, 36.0)]
    assert table.efficiency(results, results[1], 2) == pytest.approx(0.9)
    assert "0.900" in table.efficiencies(fair, results)
    assert table.efficiency(results[1:], results[1], 2) is None


def test_tables_go_between_the_marks_of_a_page(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{compare.BEGIN}old\n{compare.END}after\n")
    compare.write_into(page, "new")
    assert page.read_text() == f"before\n{compare.BEGIN}new\n{compare.END}after\n"
    page.write_text("no marks")
    with pytest.raises(ValueError, match="needs the lines"):
        compare.write_into(page, "new")
