"""Runs that are given up: only those that cannot attain any more, and cheaper for it."""

import asyncio
import gc

import pytest
from msgspec.structs import replace

from bench.figures import figures
from bench.run import Row
from bench.workload import Arrival
from simulator import scenario
from simulator.goodput import Sweep, into, search
from simulator.hopeless import Hopeless, below
from simulator.run import simulate
from simulator.world import World

ARRIVALS = [Arrival(float(n), (), 2) for n in range(20)]


def row(number, first_s, status="ok"):
    return Row(f"{number}", float(number), "grid", 1.0, None, 0, 0, 8, status, number + first_s,
               token_times_s=(number + first_s,))  # fmt: skip


async def lost_after(rows, warmup_s=0.0):
    """How many of ``rows`` are looked at before it is hopeless; all of them if it never is."""
    calls = []
    judge = Hopeless(0.8, ARRIVALS, warmup_s, lambda: calls.append(1))
    for index, each in enumerate(rows):
        judge.asked(each.id, each.arrival_s, 60.0)
        judge.ended(each)
        if calls:
            return index + 1
    return len(rows)


@pytest.mark.parametrize(
    ("first_s", "status", "warmup_s", "number"),
    [(2.0, "ok", 0.0, 5), (0.5, "ok", 0.0, 20), (0.5, "refused", 0.0, 5), (2.0, "ok", 10.0, 13)],
)
async def test_twice_the_misses_that_are_allowed(first_s, status, warmup_s, number):
    rows = [row(each, first_s, status) for each in range(20)]
    assert await lost_after(rows, warmup_s) == number


async def test_who_waits_too_long_has_missed_and_is_counted_once():
    calls = []
    judge = Hopeless(0.8, ARRIVALS[:10], 0.0, lambda: calls.append(1))
    for number in range(3):
        judge.asked(f"{number}", 0.0, 0.001)
    judge.began("2")
    await asyncio.sleep(0.05)
    assert [judge.is_late(f"{number}") for number in range(3)] == [True, True, False]
    judge.began("0")
    for number in range(2):
        judge.ended(row(number, 2.0))
        assert not judge.is_late(f"{number}")
    assert not calls
    judge.ended(row(2, 2.0))
    assert calls == [1]
    judge.ended(row(3, 2.0))
    assert calls == [1], "once"


def test_a_run_beyond_its_goodput_ends_early_and_one_below_is_untouched():
    one = scenario.made({
        "name": "x", "costs": "h200:qwen2.5-vl-7b", "workload": "synthetic:image_heavy",
        "rates": [4, 40], "duration_s": 3.0, "systems": [{"name": "x", "topology": "EPD1"}],
    }, "x")  # fmt: skip
    (system,) = one.systems
    found = {}
    for rate in one.rates:
        plan = one.plan(system, rate, 1)
        whole = simulate(plan, one.arrivals(rate, 1))
        found[rate] = whole, simulate(replace(plan, least=0.8), one.arrivals(rate, 1))
    whole, judged = found[4.0]
    assert judged == whole
    whole, judged = found[40.0]
    assert figures(whole).attainment < 0.8 and figures(judged).attainment < 0.8
    assert len(judged.rows) < len(whole.rows) / 2
    assert "given up" in judged.invalid and not whole.invalid


def test_no_seed_alone_decides_what_others_can_make_up_for():
    assert below(0.9, 1) == below(0.9, 2) == pytest.approx(0.8)
    for num_seeds in (2, 3, 5):
        others = num_seeds - 1.0
        assert (others + below(0.9, num_seeds)) / num_seeds == pytest.approx(0.9, abs=0.05)
        assert (others + below(0.9, num_seeds)) / num_seeds <= 0.9 + 1e-9
    assert below(0.99, 1) == pytest.approx(0.8)


def test_a_search_ends_between_whole_runs():
    one = scenario.made({
        "name": "x", "costs": "h200:qwen2.5-vl-7b", "workload": "synthetic:image_heavy",
        "rates": [3], "duration_s": 3.0, "seeds": [1, 2],
        "systems": [{"name": "x", "topology": "EPD1"}],
    }, "x")  # fmt: skip
    every, kept = [], []
    hear = into(kept)
    found = search(one, one.systems[0], 2.0, lambda run: (every.append(run), hear(run)))
    assert {run.rate for run in kept} >= {found.crossing.good, found.crossing.bad}
    assert len(kept) < len(every), "the growth went far beyond"
    for run in every:
        if run.invalid:
            plan = one.plan(one.systems[0], run.rate, run.seed)
            assert figures(simulate(plan, one.arrivals(run.rate, run.seed))).attainment < 0.8


def test_a_search_keeps_no_world_that_is_over():
    one = scenario.made({
        "name": "x", "costs": "h200:qwen2.5-vl-7b", "workload": "synthetic:image_light",
        "rates": [3], "duration_s": 2.0, "systems": [{"name": "x", "topology": "EPD1"}],
    }, "x")  # fmt: skip
    gc.collect()
    before = sum(type(each) is World for each in gc.get_objects())
    sweep = Sweep(one, one.systems[0])
    for rate in (1.0, 2.0, 4.0):
        sweep.measure(rate)
    assert sum(type(each) is World for each in gc.get_objects()) <= before
