"""Turns, settings and failures, with systems that answer at once."""

import pytest

from bench.client import Outcome
from bench.peers.contestant import Asked, Entrant
from bench.peers.rounds import Contest, Plan, brief
from bench.systems import SystemFailed
from bench.workload import Image

PLAN = Plan(concurrency=(1, 3), rounds=2, requests=5, tokens=4)


class Instant:
    """Answers each request after the same time, one after the other; keeps what happened."""

    def __init__(self, name, log, each_s=0.1, fails_in=""):
        self.name, self.told = name, {"each_s": each_s}
        self._log, self._each_s, self._fails_in = log, each_s, fails_in

    def _note(self, what):
        self._log.append((what, self.name))
        if what == self._fails_in:
            raise SystemFailed(f"{self.name} ended:\nTraceback\n\nno memory\n")

    async def start(self):
        self._note("start")

    async def ask(self, arrivals, timeout_s):
        self._log.append(("ask", tuple(arrivals)))
        outcomes = []
        for number, arrival in enumerate(arrivals):
            end_s = (number + 1) * self._each_s
            times = tuple(end_s - 0.01 * n for n in reversed(range(arrival.num_output)))
            outcomes.append(Outcome(number * self._each_s, times, end_s, "ok"))
        return Asked(tuple(outcomes), {"q": "a"}, 0.001)

    async def stop(self):
        self._log.append(("stop", self.name))


def entrant(name, log, **settings):
    return Entrant(
        name,
        {key: lambda value=value: Instant(name, log, **value) for key, value in settings.items()},
    )


def turns(log):
    return [f"{what} {name}" for what, name in log if what in ("start", "stop")]


def asked(log):
    """The requests of each turn."""
    found = []
    for what, value in log:
        if what == "start":
            found.append([])
        elif what == "ask":
            found[-1].append(value)
    return found


async def test_systems_take_turns_alone_and_see_the_same_requests(monkeypatch):
    monkeypatch.setattr("bench.peers.rounds._SETTLE_S", 0.0)
    log, said = [], []
    entrants = [entrant(name, log, only={}) for name in ("A", "B")]
    found = await Contest(entrants, PLAN, said.append).run()
    turn = {name: [f"start {name}", f"stop {name}"] for name in ("A", "B")}
    assert turns(log) == [*turn["A"], *turn["B"], *turn["B"], *turn["A"]], "who begins changes"
    first, second, third, fourth = asked(log)
    assert first == second != third == fourth
    keys = [(one.system, one.round, one.concurrency) for one in found.measured]
    assert keys == [
        ("A", 0, 1), ("A", 0, 3), ("B", 0, 1), ("B", 0, 3),
        ("B", 1, 1), ("B", 1, 3), ("A", 1, 1), ("A", 1, 3),
    ]  # fmt: skip
    assert all(one.summary.outcomes == {"ok": 5} for one in found.measured)
    assert found.settled["A"].told == {"each_s": 0.1}
    assert any("min left" in line for line in said)


async def test_the_best_setting_is_measured(monkeypatch):
    monkeypatch.setattr("bench.peers.rounds._SETTLE_S", 0.0)
    log = []
    one = entrant("A", log, slow={"each_s": 0.2}, broken={"fails_in": "start"}, quick={})
    found = await Contest([one], Plan((1,), 1, 2, 4), lambda _: None).run()
    settled = found.settled["A"]
    assert settled.setting == "quick"
    # Requests/s 10 against 5, first tokens after 70 and 170 ms, tokens 10 ms apart.
    better = (2 * (0.2 - 0.03) / (0.1 - 0.03)) ** (1 / 3)
    assert settled.trials["quick"] == pytest.approx(better * settled.trials["slow"], rel=1e-3)
    assert settled.trials["broken"] == "A ended: no memory"
    assert turns(log) == ["start A", "stop A"] * 4, "three trials and a round, each ended"
    (measured,) = found.measured
    assert measured.summary.requests_per_s == pytest.approx(10.0)


async def test_who_fails_is_left_out_and_the_others_go_on(monkeypatch):
    monkeypatch.setattr("bench.peers.rounds._SETTLE_S", 0.0)
    log = []
    entrants = [
        entrant("A", log, only={"fails_in": "start"}),
        entrant("B", log, x={"fails_in": "start"}, y={"fails_in": "start"}),
        entrant("C", log, only={}),
    ]
    found = await Contest(entrants, PLAN, lambda _: None).run()
    assert found.failed.keys() == {"A", "B"}
    assert "no setting works" in found.failed["B"]
    assert {one.system for one in found.measured} == {"C"}
    assert turns(log).count("start A") == turns(log).count("stop A") == 1


async def test_who_answers_otherwise_than_asked_is_not_measured():
    class Short(Instant):
        async def ask(self, arrivals, timeout_s):
            return Asked((Outcome(0.0, (0.1,), 0.1, "failed", "1 tokens instead of 4"),), {}, 0.0)

    found = await Contest(
        [Entrant("A", {"only": lambda: Short("A", [])})], PLAN, lambda _: None
    ).run()
    assert "1 tokens instead of 4" in found.failed["A"]
    assert found.measured == []


def test_a_loop_has_as_many_clients_and_no_picture_twice():
    loops = [PLAN.arrivals(clients, round_) for clients in (1, 3) for round_ in (0, 1)]
    for loop, clients in zip(loops, (1, 1, 3, 3), strict=True):
        assert len(loop) == 5
        assert len({one.session for one in loop}) == clients
        assert {one.num_output for one in loop} == {4}
        assert {one.num_text for one in loop} == {16}
    pictures = [part for loop in loops for one in loop for part in one.images]
    assert len(set(pictures)) == len(pictures) == 20
    assert {(one.width, one.height) for one in pictures if isinstance(one, Image)} == {(224, 224)}
    assert PLAN.arrivals(3, 1) == loops[3]
    assert len(Plan().arrivals(16, 0)) == 96
    assert len(Plan().arrivals(1, 0)) == 24


def test_a_failure_in_a_line():
    assert brief("vLLM ended while starting:\nTraceback\n  x\nOSError: y\n\n") == (
        "vLLM ended while starting: OSError: y"
    )
    assert brief(SystemFailed("no such file")) == "no such file"
    assert brief("") == ""
