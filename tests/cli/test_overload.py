"""The command of overload, on a small scenario."""

from cli import overload
from simulator.scenario import read
from tests.house.sources import ROOT

SMALL = """
name = "small"
costs = "h200:qwen2.5-vl-7b"
workload = "synthetic:fixed,output=16"
rates = [10]
duration_s = 2
warmup_s = 0.5
sample_s = 0

[[systems]]
name = "one"
topology = "EPD1"
set = ["admission.policy=slo"]
"""


def test_a_small_scenario_is_shown(tmp_path, capsys):
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    assert overload.main([str(path), "--times", "2", "--minutes", "0.05"]) == 0
    row = capsys.readouterr().out.splitlines()[2]
    assert row.startswith("| one") and "0.0%" in row


def test_the_example_has_admission_first_and_none_beside_it():
    found = read(ROOT / overload.SCENARIO)
    first, *others = found.systems
    assert "admission.policy=slo" in first.set
    assert others and all("admission.policy=slo" not in one.set for one in others)
