"""Roles over time in whole simulated runs: switches follow the load, and queues are told."""

import itertools

import pytest

from bench.workload import Arrival, Text
from simulator.run import simulate
from simulator.scenario import made
from triptych.core.errors import ConfigError

COUNT = 40


def scenario(roles, topology="E3,P1,D1", **more):
    return made(
        {
            "name": "test",
            "costs": "h200:qwen2.5-vl-7b",
            "workload": "synthetic:image_heavy",
            "rates": [4.0],
            "duration_s": 10.0,
            "set": [
                "engine.max_sequences=1",
                "transfer.lease_s=600",
                "router.placement=least_loaded",
            ],
            "machines": {"load_s": 0.7, "switch_s": 0.7},
            "systems": [{"name": roles, "topology": topology, "roles": roles, **more}],
        },
        "test",
    )


def long_answers():
    """A decode instance that takes one sequence at a time cannot keep up with them."""
    for number in range(COUNT):
        yield Arrival(number / 4, (Text(number, 100),), 200, answer=number, slo="batch")


def run_of(roles, **more):
    ((_, plan),) = scenario(roles, **more).plans()
    return simulate(plan, long_answers())


def test_instances_go_where_the_queue_is():
    still, moved = run_of("static"), run_of("epdserve")
    assert still.changes == ()
    roles = [change for change in moved.changes if change.what == "role"]
    assert [change.detail for change in roles] == ["E -> D"] * 2
    for run in (still, moved):
        assert [row.status for row in run.rows] == ["ok"] * COUNT
        assert all(len(row.token_times_s) == 200 for row in run.rows)
    assert max(row.end_s for row in moved.rows) < 0.6 * max(row.end_s for row in still.rows)


def test_queues_are_told_every_second():
    run = run_of("static")
    times = sorted({queue.at_s for queue in run.queues})
    assert times[:3] == [0.0, 1.0, 2.0]
    assert {queue.instance for queue in run.queues} == {
        "encode-0", "encode-1", "encode-2", "prefill-0", "decode-0",
    }  # fmt: skip
    decode = [queue for queue in run.queues if queue.instance == "decode-0"]
    assert max(queue.running for queue in decode) == 1
    longest = max(decode, key=lambda queue: queue.waiting)
    assert longest.waiting > COUNT / 2
    behind = (queue.waiting for queue in decode if queue.at_s >= longest.at_s)
    assert all(before >= after for before, after in itertools.pairwise(behind))
    encode = [queue for queue in run.queues if queue.instance == "encode-0"]
    assert {(queue.waiting, queue.running) for queue in encode} == {(0, 0)}


def test_a_policy_that_nobody_knows_is_named():
    with pytest.raises(ConfigError, match=r"router\.roles: 'astrology' is not one of"):
        scenario("astrology")


@pytest.mark.parametrize("roles", ["modserve", "elasticmm", "plan_ahead"])
def test_every_policy_serves_everything(roles):
    groups = {"decode-0": "text", "prefill-0": "text"} if roles == "elasticmm" else {}
    run = run_of(roles, groups=groups)
    assert [row.status for row in run.rows] == ["ok"] * COUNT
