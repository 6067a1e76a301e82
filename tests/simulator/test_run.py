"""Whole simulated runs: complete, deterministic, exact, and idle at the end."""

import hashlib
import itertools
import os
import subprocess
import sys

import pytest

from simulator.executors import SimulatedLanguage
from simulator.run import simulate
from simulator.scenario import made
from triptych.core.errors import ConfigError

TOPOLOGIES = ("EPD2", "E1,P1,D2", "EP1,D1", "E1,PD2", "ED1,P1")


def scenario(topology, source="synthetic:servegen", rate=4.0, duration_s=8.0, **more):
    return made(
        {
            "name": "test",
            "costs": "h200:qwen2.5-vl-7b",
            "workload": source,
            "rates": [rate],
            "duration_s": duration_s,
            "systems": [{"name": topology, "topology": topology}],
            **more,
        },
        "test",
    )


def run_of(scenario):
    (_, plan), *_ = scenario.plans()
    return simulate(plan, scenario.source.arrivals(plan.rate, plan.duration_s, plan.seed))


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_every_request_is_answered_with_what_was_asked(topology):
    asked = scenario(topology)
    run = run_of(asked)
    arrivals = list(asked.source.arrivals(4.0, 8.0, 1))
    assert len(run.rows) == len(arrivals) > 10
    for row, arrival in zip(run.rows, arrivals, strict=True):
        assert row.status == "ok"
        assert row.arrival_s == pytest.approx(arrival.at_s)
        assert len(row.token_times_s) == arrival.num_output
        assert list(row.token_times_s) == sorted(row.token_times_s)
        assert row.token_times_s[0] > row.arrival_s
        assert row.num_images == len(arrival.images)
        assert row.attempts == 1
    assert run.num_gpus == sum(int(part[-1]) for part in topology.split(","))


@pytest.mark.parametrize("topology", ["E1,P1,D2", "EPD2"])
def test_runs_of_steps_change_nothing(monkeypatch, topology):
    """One step after the other gives the same times as runs of them, but for rounding."""
    asked = scenario(topology, rate=6.0)
    rows = run_of(asked).rows
    monkeypatch.setattr(SimulatedLanguage, "max_steps", 1)
    for row, single in zip(rows, run_of(asked).rows, strict=True):
        assert row.id == single.id
        assert row.route == single.route
        assert row.token_times_s == pytest.approx(single.token_times_s, abs=1e-9)


def fingerprint():
    run = run_of(scenario("E1,P1,D2", "synthetic:servegen,repeat=0.3"))
    return hashlib.sha256(repr((run.rows, run.busy)).encode()).hexdigest()


def test_equal_seeds_give_equal_runs_in_any_process():
    program = "from tests.simulator.test_run import fingerprint; print(fingerprint())"
    found = {fingerprint()}
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.getcwd()},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        found.add(done.stdout.strip())
    assert len(found) == 1


def test_conversations_hit_their_own_past():
    """The next turn comes after the answer, and finds prompt and answer cached."""
    run = run_of(scenario("EPD1", "synthetic:multi_turn", rate=0.5, duration_s=40.0))
    by_session = {}
    for row in run.rows:
        by_session.setdefault(row.session, []).append(row)
    later = [rows for rows in by_session.values() if len(rows) > 1]
    assert later
    for rows in later:
        for before, after in itertools.pairwise(rows):
            assert after.arrival_s >= before.end_s
            assert after.cached_tokens > 0.5 * before.prompt_tokens


def test_equal_pictures_are_encoded_once():
    unique = run_of(scenario("E1,PD1", "synthetic:servegen,images=1"))
    repeated = run_of(scenario("E1,PD1", "synthetic:servegen,images=1,repeat=0.9"))

    def encoded(run):
        return sum(busy.num_tokens for busy in run.busy if busy.what == "encode")

    assert encoded(repeated) < 0.6 * encoded(unique)


@pytest.mark.parametrize(
    "setting",
    [
        *("cache.kv_dtype=int8", "sparse.selector=xattention", "cache.host_bytes=4096"),
        *("model.vision_share=0.5", "model.decode_gap_s=0.01"),
    ],
)
def test_what_is_not_modelled_is_refused(setting):
    asked = scenario("E1,P1,D1", set=[setting])
    with pytest.raises(ConfigError, match=setting.partition("=")[0]):
        run_of(asked)
