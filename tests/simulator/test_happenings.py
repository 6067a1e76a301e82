"""What happens during a simulated run has its effect, and only it."""

import functools
import hashlib
import json
import os
import subprocess
import sys

import pytest

from simulator.run import simulate
from simulator.scenario import made
from triptych.core.errors import ConfigError


def scenario(topology, *happenings, rate=4.0, duration_s=6.0, machines=None, **system):
    return made(
        {
            "name": "test",
            "costs": "h200:qwen2.5-vl-7b",
            "workload": "synthetic:image_heavy,images=1",
            "rates": [rate],
            "duration_s": duration_s,
            "happenings": list(happenings),
            "machines": {"start_s": 5.0, "load_s": 3.0, "switch_s": 0.5, **(machines or {})},
            "systems": [{"name": "one", "topology": topology, **system}],
        },
        "test",
    )


def run_of(*words, **more):
    """Of the scenario of these words, as often as one likes."""
    return run_once(json.dumps([words, more]))


@functools.cache
def run_once(text):
    words, more = json.loads(text)
    asked = scenario(*words, **more)
    ((_, plan),) = asked.plans()
    run = simulate(plan, asked.source.arrivals(plan.rate, plan.duration_s, plan.seed))
    asked_for = list(asked.source.arrivals(plan.rate, plan.duration_s, plan.seed))
    assert [row.status for row in run.rows] == ["ok"] * len(asked_for)
    for row, arrival in zip(run.rows, asked_for, strict=True):
        assert len(row.token_times_s) == arrival.num_output
        assert list(row.token_times_s) == sorted(row.token_times_s)
    return run


def happening(at_s, what, instance="", **more):
    return {"at_s": at_s, "what": what, "instance": instance, **more}


def told(run):
    return [(change.instance, change.at_s, change.what) for change in run.changes]


def tpots(rows):
    """Mean gaps between tokens, of answers long enough."""
    return [
        (row.token_times_s[-1] - row.token_times_s[1]) / (len(row.token_times_s) - 2)
        for row in rows
        if len(row.token_times_s) > 20
    ]


def mean(values):
    values = list(values)
    return sum(values) / len(values)


@pytest.mark.parametrize("place", ["encode-0", "prefill-0", "decode-0"])
def test_a_killed_instance_costs_attempts_and_no_request(place):
    run = run_of("E2,P2,D2", happening(4.0, "kill", place), rate=8.0, duration_s=10.0)
    lost, started = run.changes
    assert (lost.instance, lost.at_s, lost.what) == (place, 4.0, "lost")
    assert (started.instance, started.what) == (place, "started")
    # The step in flight ends before the next incarnation begins to start.
    assert started.at_s == pytest.approx(9.0, abs=0.5)
    retried = [row for row in run.rows if row.attempts > 1]
    assert all(row.arrival_s < 4.0 < row.end_s for row in retried)
    assert retried or place != "decode-0"
    away = [busy for busy in run.busy if busy.instance == place and 4.2 < busy.start_s < 9.0]
    assert not away


def test_a_kill_of_nobody_is_told():
    run = run_of("E1,P1,D2", happening(4.0, "kill", "decode-0"), happening(5.0, "kill", "decode-0"))
    assert told(run)[:2] == [("decode-0", 4.0, "lost"), ("decode-0", 5.0, "refused")]


def test_everything_takes_so_many_times_longer():
    """Also the run of steps that was in flight when it began, and only while it lasts."""
    alone = {"rate": 0.25, "duration_s": 30.0}
    plain = run_of("E1,P1,D1", **alone)
    slowed = run_of("E1,P1,D1", happening(0.0, "slow", "decode-0", factor=3.0), **alone)
    assert mean(tpots(slowed.rows)) == pytest.approx(3 * mean(tpots(plain.rows)), rel=0.02)
    assert mean(row.token_times_s[0] - row.arrival_s for row in slowed.rows) == pytest.approx(
        mean(row.token_times_s[0] - row.arrival_s for row in plain.rows), rel=0.02
    )


def test_a_run_in_flight_is_cut_where_the_pace_changes():
    plain = run_of("E1,P1,D1", rate=0.25, duration_s=30.0)
    row = max(plain.rows, key=lambda row: len(row.token_times_s))
    middle_s = row.token_times_s[len(row.token_times_s) // 2]
    slow = happening(middle_s + 1e-4, "slow", "decode-0", factor=4.0, for_s=0.2)
    slowed = next(
        each
        for each in run_of("E1,P1,D1", slow, rate=0.25, duration_s=30.0).rows
        if each.id == row.id
    )
    # 0.2 s give a quarter of the tokens; the step under way at either end keeps its pace.
    step_s = tpots([row])[0]
    late_s = slowed.token_times_s[-1] - row.token_times_s[-1]
    assert late_s == pytest.approx(0.15, abs=5 * step_s)
    before = len([at for at in row.token_times_s if at <= middle_s])
    assert slowed.token_times_s[:before] == pytest.approx(row.token_times_s[:before])


def test_a_narrow_port_makes_its_messages_late():
    slowly = {"rate": 1.0, "duration_s": 12.0}
    plain = run_of("E1,P1,D1", **slowly)
    narrow = run_of(
        "E1,P1,D1", happening(0.0, "link", "prefill-0", share=0.001, for_s=5.0), **slowly
    )
    assert told(narrow) == [("prefill-0", 0.0, "slowed"), ("prefill-0", 5.0, "recovered")]

    def late_s(begin_s, end_s):
        pairs = zip(plain.rows, narrow.rows, strict=True)
        return max(
            other.token_times_s[1] - one.token_times_s[1]
            for one, other in pairs
            if begin_s <= one.arrival_s < end_s
        )

    assert late_s(0.0, 4.0) > 0.05
    assert late_s(8.0, 12.0) < 0.01


def test_far_links_are_those_between_nodes():
    squeezed = happening(0.0, "link", share=0.001)
    near = run_of("E1,P1,D1", squeezed)
    assert near.rows == run_of("E1,P1,D1").rows
    apart = {"machines": {"per_node": 1}}
    far, plain = run_of("E1,P1,D1", squeezed, **apart), run_of("E1,P1,D1", **apart)
    assert mean(row.end_s for row in far.rows) > mean(row.end_s for row in plain.rows) + 0.1


def test_a_role_moves_capacity():
    """Prefill that becomes decode takes the short switch, encode that becomes prefill loads."""
    run = run_of(
        "E2,P2,D1",
        happening(4.0, "role", "prefill-0", role="D"),
        happening(5.0, "role", "encode-1", role="P"),
        duration_s=20.0,
    )
    changes = {(one.instance, one.what): one for one in run.changes}
    assert changes["prefill-0", "role"].detail == "P -> D"
    assert changes["encode-1", "role"].detail == "E -> P"
    drained = {
        place: max(
            (one.end_s for one in run.busy if (one.instance, one.what) == (place, what)), default=0
        )
        for place, what in (("prefill-0", "prefill"), ("encode-1", "encode"))
    }
    assert changes["prefill-0", "role"].at_s >= max(4.0, drained["prefill-0"]) + 0.5
    assert changes["encode-1", "role"].at_s >= max(5.0, drained["encode-1"]) + 3.0
    later = {
        (busy.instance, busy.what)
        for busy in run.busy
        if (busy.instance, "role") in changes
        if busy.start_s > changes[busy.instance, "role"].at_s
    }
    assert {("prefill-0", "decode"), ("encode-1", "prefill")} <= later
    assert not {("prefill-0", "prefill"), ("encode-1", "encode")} & later
    assert all(row.attempts == 1 for row in run.rows)


def test_a_role_that_would_leave_a_stage_alone_is_refused():
    run = run_of("E1,P1,D2", happening(2.0, "role", "prefill-0", role="D"))
    (change,) = run.changes
    assert (change.instance, change.what) == ("prefill-0", "refused")
    assert "prefill-0 is the only one ready to prefill" in change.detail
    assert run.rows == run_of("E1,P1,D2").rows


@pytest.mark.parametrize(
    ("happenings", "named"),
    [
        ([happening(0.0, "kill", "decode-7")], "happenings.instance: 'decode-7' is not one of enc"),
        ([happening(0.0, "slow")], "happenings.instance: '' is not one of"),
        ([happening(0.0, "role", "decode-0", role="DP")], "role: 'DP' is not one of E, P, D, EP"),
        ([happening(-1.0, "kill", "decode-0")], "at_s"),
        ([happening(0.0, "link", share=0.0)], "share"),
        ([happening(0.0, "flood", "decode-0")], "what"),
    ],
)
def test_what_cannot_happen_is_named(happenings, named):
    with pytest.raises(ConfigError, match=named):
        scenario("E1,P1,D1", *happenings)


def test_a_happening_may_be_for_some_systems_only():
    asked = scenario("EPD2", happening(0.0, "kill", "decode-0", systems=["other"]))
    ((_, plan),) = asked.plans()
    assert plan.happenings == ()


EVENTFUL = (
    happening(2.0, "kill", "decode-0"),
    happening(3.0, "slow", "prefill-0", factor=2.0, for_s=4.0),
    happening(3.5, "link", "encode-0", share=0.01, for_s=3.0),
    happening(6.0, "role", "encode-1", role="D"),
)
COLOCATED = [{"places": ["encode-0", "decode-1"], "shares": [0.4, 0.6], "eta": 0.8}]


def fingerprint():
    run = run_of(
        "E2,P2,D2", *EVENTFUL, roles="epdserve", machines={"colocated": COLOCATED}, rate=6.0
    )
    assert {"lost", "slowed", "recovered", "role"} <= {change.what for change in run.changes}
    whole = repr((run.rows, run.busy, run.queues, run.changes))
    return hashlib.sha256(whole.encode()).hexdigest()


def test_equal_seeds_give_equal_runs_in_any_process():
    program = "from tests.simulator.test_happenings import fingerprint; print(fingerprint())"
    found = set()
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.getcwd()},
            capture_output=True,
            text=True,
            check=True,
            timeout=200,
        )
        found.add(done.stdout.strip())
    assert len(found) == 1
