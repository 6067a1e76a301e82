"""Side by side: figures and bounds by hand, and a simulation that is taken for a server."""

import msgspec
import pytest

from bench.run import Row, Run
from bench.sources.registry import workload
from bench.workload import Arrival, Image, Text
from cli.__main__ import main
from cli.validate import RUNS
from simulator import validation
from simulator.costs.card import to_json
from simulator.profile.rehearsal import as_counted, plan_of
from simulator.run import simulate
from simulator.validation import WORKLOADS, Extent, Live, Pair, figures, validate
from tests.simulator.test_profile import CARD, CONFIG
from tests.simulator.test_threads import AROUND
from triptych.core.errors import ConfigError


def run_of(ttft_s, gap_s, rate=2.0):
    rows = tuple(
        Row(
            id=f"r{number}", arrival_s=float(number), slo="interactive", ttft_slo_s=None,
            tpot_slo_s=None, num_images=0, image_tokens=0, prompt_tokens=10, status="ok",
            end_s=number + 9.0,
            token_times_s=tuple(number + ttft_s + gap_s * index for index in range(5)),
        )
        for number in range(4)
    )  # fmt: skip
    return Run("EPD1", "texts", rate, 1, 1, 4.0, rows, warmup_s=1.0)


def test_repetitions_are_pooled_and_errors_are_relative():
    pairs = [
        Pair(run_of(0.100, 0.010), run_of(0.105, 0.008), 0.3),
        Pair(run_of(0.120, 0.012), run_of(0.115, 0.008), 0.3),
    ]
    found = {each.name: each for each in figures(pairs)}
    ttft, tpot = found["TTFT mean"], found["TPOT mean"]
    assert (ttft.live_s, ttft.low_s, ttft.high_s) == pytest.approx((0.110, 0.100, 0.120))
    assert ttft.simulated_s == pytest.approx(0.110)
    assert ttft.error == pytest.approx(0.0, abs=1e-9)
    assert ttft.is_met
    assert tpot.error == pytest.approx(0.008 / 0.011 - 1)
    assert not tpot.is_met
    assert found["TTFT p99"].live_s == pytest.approx(0.120)


def test_prompts_are_as_long_as_the_server_counted():
    arrival = Arrival(0.0, (Image(1, 56, 56), Text(7, 30)), 4)
    counted = as_counted(arrival, 60)
    assert counted.num_prompt == 60
    assert counted.images == arrival.images
    head, _, rest = counted.parts
    assert (head.seed, rest.seed) == (0, 7)
    assert as_counted(arrival, 5).num_prompt == 5


def served(config, topology, extent, name, rate, seed):
    """What a server would have shown that is the simulator itself."""
    plan = plan_of(config, CARD, topology, AROUND)
    source = workload(extent.workloads[name]).arrivals(rate, extent.duration_s, seed)
    asked = [as_counted(each, each.num_prompt + 22) for each in source]
    run = simulate(plan, asked)
    rows = [msgspec.structs.replace(row, id=f"r{row.id[4:]}") for row in run.rows]
    return Run(topology, name, rate, seed, 1, extent.duration_s, tuple(rows))


def test_a_server_that_is_the_simulator_is_met_exactly(monkeypatch):
    extent = Extent(duration_s=3.0)
    lives = [
        Live(served(CONFIG, topology, extent, name, 5.0, 3), 0.5, 0.0)
        for topology in ("EPD1", "E1,PD1")
        for name in WORKLOADS
    ]

    async def live(config, extent, tempo, say):
        return lives

    monkeypatch.setattr(validation, "_live", live)
    heard = []
    card = msgspec.structs.replace(CARD, overheads=AROUND)
    pairs = validate(CONFIG, card, extent, lambda text, share: heard.append(share))
    found = figures(pairs)
    assert len(found) == 16
    assert all(each.live_s > 0 for each in found)
    assert all(each.error == pytest.approx(0.0, abs=1e-9) for each in found)
    assert heard == sorted(heard)


def test_what_was_measured_is_simulated_once_more(monkeypatch, tmp_path, capsys):
    """By the command, and what cannot be read is said."""
    extent = Extent(duration_s=3.0)
    name = next(iter(WORKLOADS))
    run = served(CONFIG, "EPD1", extent, name, 2.0, 3)
    card = tmp_path / "card.json"
    card.write_bytes(to_json(msgspec.structs.replace(CARD, overheads=AROUND)))
    was = tmp_path / "was"
    was.mkdir()
    (was / RUNS).write_bytes(msgspec.json.encode([Pair(run, run_of(1.0, 1.0), 0.5)]))
    words = ["validate", str(card), "--model", "oracle", "--again"]
    assert main([*words, str(was), "--out", str(tmp_path / "now")]) == 0
    (pair,) = msgspec.json.decode((tmp_path / "now" / RUNS).read_bytes(), type=list[Pair])
    assert pair.live == run
    assert all(each.is_met for each in figures([pair]))
    (was / RUNS).write_bytes(b"[]")
    for folder in (was, tmp_path):
        assert main([*words, str(folder)]) == 1
    assert "again" in capsys.readouterr().err


def test_a_machine_that_is_slower_meanwhile_is_simulated_so(monkeypatch):
    extent = Extent(duration_s=3.0)
    name = next(iter(WORKLOADS))
    run = served(CONFIG, "EPD1", extent, name, 2.0, 3)

    async def live(config, extent, tempo, say):
        assert tempo.usual_s == 0.003
        return [Live(run, 0.5, 0.003), Live(run, 0.5, 0.006)]

    monkeypatch.setattr(validation, "_live", live)
    card = msgspec.structs.replace(
        CARD, overheads=msgspec.structs.replace(AROUND, beat_s=0.003, picture_wait_s=0.0)
    )
    same, slow = validate(CONFIG, card, extent, lambda text, share: None)
    assert (same.beat_s, slow.beat_s) == (0.003, 0.006)
    for fast, late in zip(same.simulated.rows, slow.simulated.rows, strict=True):
        taken = late.token_times_s[0] - late.arrival_s
        assert taken > 1.6 * (fast.token_times_s[0] - fast.arrival_s)


def test_a_card_of_steps_alone_is_not_enough():
    with pytest.raises(ConfigError, match="overheads"):
        validate(CONFIG, CARD, Extent(), lambda text, share: None)
