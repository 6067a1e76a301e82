"""Which way is taken: what was measured decides, and what broke is avoided for a while."""

from kvtransfer.routes import AVOID_S, MESSAGE_S, Measured, Routes
from tests.kvtransfer.stores import layout, ref_to
from triptych.core.clock import ManualClock
from triptych.core.handoff import Endpoint
from triptych.core.ids import InstanceId

GIVER = InstanceId("giver@0")
REF = ref_to(GIVER, Endpoint(), 1, layout())


class Way:
    def __init__(self, name: str, *, reaches: bool = True) -> None:
        self.name = name
        self.can_reach = lambda _: reaches


def routes(*names: str, name: str = "auto"):
    clock = ManualClock()
    return Routes([Way(each) for each in names], name, clock), clock


def names(made: Routes, num_bytes: int = 1 << 20):
    return [way.name for way in made.rank(REF, num_bytes)]


def test_the_nearest_is_taken_until_something_is_known():
    assert names(routes("inproc", "shm", "nixl", "tcp")[0]) == ["inproc", "shm", "nixl", "tcp"]
    assert names(routes("inproc", "shm", "tcp", name="tcp")[0]) == ["inproc", "tcp"]
    assert Routes([Way("shm", reaches=False)], "auto", ManualClock()).rank(REF, 1) == []


def test_measured_bandwidth_decides_for_large_and_latency_for_small():
    made, _ = routes("shm", "tcp")
    made.learn(GIVER, "shm", Measured(0.001, 1 << 20, 0.02))  # 52 MB/s, 1 ms
    made.learn(GIVER, "tcp", Measured(0.005, 1 << 20, 0.002))  # 524 MB/s, 5 ms
    assert names(made, 64) == ["shm", "tcp"]
    assert names(made, 1 << 20) == ["tcp", "shm"]
    reports = {report.transport: report for report in made.reports()}
    assert reports["shm"].bytes_per_s == (1 << 20) / 0.02
    made.learn(GIVER, "shm", Measured(0.001))
    assert {r.transport: r for r in made.reports()}["shm"] == reports["shm"], "no sample, no change"
    made.learn(GIVER, "shm", Measured(0.011, 1 << 20, 0.01))
    shm = {report.transport: report for report in made.reports()}["shm"]
    assert 0.0029 < shm.latency_s < 0.0031
    assert (1 << 20) / 0.02 < shm.bytes_per_s < (1 << 20) / 0.01


def test_a_broken_way_is_the_last_resort_for_a_while_and_counted():
    made, clock = routes("shm", "nixl", "tcp")
    made.broke(GIVER, "shm")
    assert names(made) == ["nixl", "tcp", "shm"]
    made.broke(GIVER, "nixl")
    made.broke(GIVER, "nixl")
    assert names(made) == ["tcp", "shm", "nixl"]
    assert {r.transport: r.failovers for r in made.reports()} == {"nixl": 2, "shm": 1}
    clock.advance(AVOID_S)
    assert names(made) == ["shm", "nixl", "tcp"]
    other = ref_to("other@0", Endpoint(), 1, layout())
    assert [way.name for way in made.rank(other, 1)] == ["shm", "nixl", "tcp"]


def test_a_speed_is_reported_only_where_it_was_measured_and_would_be_had():
    made, clock = routes("shm", "nixl", "tcp")
    made.broke(GIVER, "nixl")
    made.learn(GIVER, "tcp", Measured(0.001, 1 << 20, 0.5))
    made.learn(GIVER, "shm", Measured(0.001))
    speeds = lambda: {r.transport: r.bytes_per_s for r in made.reports()}  # noqa: E731
    assert speeds() == {"nixl": 0, "shm": 0, "tcp": (1 << 20) / 0.5}
    made.broke(GIVER, "tcp")
    assert speeds() == {"nixl": 0, "shm": 0, "tcp": 0}
    clock.advance(AVOID_S)
    assert speeds() == {"nixl": 0, "shm": 0, "tcp": (1 << 20) / 0.5}


def test_a_later_incarnation_ends_what_was_known_of_those_before_it():
    made, _ = routes("shm", "tcp")
    others = ("other@0", "giver@12", "giver", "giver@x")
    for name in ("giver@0", "giver@9", *others):
        made.broke(InstanceId(name), "shm")
    made.succeed(InstanceId("giver@10"))
    assert {report.giver for report in made.reports()} == set(others)


def test_a_busy_giver_is_not_asked_by_every_way_in_turn():
    made, _ = routes("inproc", "shm", "tcp")
    made.learn(GIVER, "inproc", Measured(0.05))
    assert names(made, 64) == ["inproc", "shm", "tcp"]
    made.learn(GIVER, "inproc", Measured(0.05, 1 << 20, 0.1))  # 10 MB/s: that is not the load
    assert names(made, 64 << 20)[0] == "shm"


def test_messages_are_as_large_as_a_link_carries_in_a_moment():
    made, _ = routes("shm", "tcp")
    sizes = lambda: [made.message_bytes(GIVER, way, 1 << 20, 1 << 24) for way in ("shm", "tcp")]  # noqa: E731
    assert sizes() == [1 << 20, 1 << 20], "nothing is known"
    made.learn(GIVER, "shm", Measured(0.001))
    assert sizes() == [1 << 20, 1 << 20], "no bandwidth is known"
    made.learn(GIVER, "shm", Measured(0.001, 1 << 30, 1.0))
    made.learn(GIVER, "tcp", Measured(0.001, 1 << 20, 1.0))
    assert sizes() == [round(MESSAGE_S * (1 << 30)), 1 << 20]
    made.learn(GIVER, "shm", Measured(0.001, 1 << 40, 1.0))
    assert sizes() == [1 << 24, 1 << 20]


def test_a_way_that_was_never_tried_is_as_slow_as_the_others_unless_they_are_slow_by_far():
    for rate, first in ((4e9, "nixl"), (2e9, "nixl"), (0.1e9, "nccl")):
        made, _ = routes("nixl", "nccl", "tcp")
        made.learn(GIVER, "nixl", Measured(1e-4, 1 << 30, (1 << 30) / rate))
        assert names(made, 1 << 28)[0] == first
    made, _ = routes("nixl", "tcp")
    made.learn(GIVER, "nixl", Measured(1e-4, 1 << 30, 100.0))  # 11 MB/s
    assert names(made, 1 << 28) == ["tcp", "nixl"]


def test_nothing_new_is_tried_while_memory_is_shared():
    made, _ = routes("shm", "nixl", "tcp")
    made.learn(GIVER, "shm", Measured(0.5, 1 << 20, 10.0))  # however slow it seems to be
    assert names(made) == ["shm", "nixl", "tcp"]
    made.learn(
        GIVER, "tcp", Measured(0.001, 1 << 20, 0.002)
    )  # it was asked for once, and is better
    assert names(made) == ["tcp", "shm", "nixl"]
    made.broke(GIVER, "shm")
    assert names(made) == ["tcp", "nixl", "shm"], "what was never tried is as slow as tcp is"
