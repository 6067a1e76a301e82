"""Watts by load."""

import csv
import os
from pathlib import Path

import pytest

from simulator.costs.card import to_json
from simulator.costs.devices import A100, H200
from simulator.costs.power import fit, read
from simulator.costs.registry import power
from tests.house.sources import ROOT

TRACES = Path(os.environ.get("TRIPTYCH_TRACES", ROOT.parent / "shared" / "traces"))
MEASURED = TRACES / "splitwise_sim" / "perf_model.csv"


def test_prompts_draw_all_a_device_may_and_decodes_do_not():
    watts = power().watts
    assert watts(A100, "idle") == pytest.approx(69, rel=0.05)
    assert watts(A100, "prefill", 2048, 35e9) == pytest.approx(400, rel=0.06)
    assert 200 < watts(A100, "decode", 1, 17.5e9) < watts(A100, "decode", 16, 17.5e9) < 300
    assert watts(A100, "decode", 10**6, 35e9) < 1.1 * A100.power_w
    assert watts(A100, "encode", 64, 1e9) < watts(A100, "encode", 16384, 1e9)
    assert watts(A100, "prefill", 0, 7e9) == watts(A100, "idle")


def test_another_device_has_the_same_shares_of_its_power():
    one, other = (power().watts(device, "prefill", 512, 7e9) for device in (A100, H200))
    assert other / one == pytest.approx(700 / 400)


def test_batching_saves_energy_per_token():
    """Decoding 7 B parameters on an A100: 11 ms a step alone, 13 ms for 32."""
    watts = power().watts
    alone = watts(A100, "decode", 1, 7e9) * 11e-3
    shared = watts(A100, "decode", 32, 7e9) * 13e-3 / 32
    assert shared < alone / 10


def test_errors_are_kept():
    errors = power().errors
    assert errors["prefill"].num_points == 44
    assert errors["prefill"].mean < 0.06
    assert errors["decode"].mean < 0.03


@pytest.mark.skipif(not MEASURED.is_file(), reason="no copy of splitwise_sim/perf_model.csv")
def test_the_shipped_file_is_what_the_measurements_give():
    with MEASURED.open(newline="") as file:
        again = fit(read(csv.DictReader(file)))
    assert to_json(again) == to_json(power())
