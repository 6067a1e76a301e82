"""The clock of a live run, with a sender that is told what to do."""

import asyncio

import pytest

from bench.client import Refused
from bench.goodput import Bisection
from bench.live.drive import Pace, drive
from bench.live.measure import Bench, Contender, Load
from bench.live.sender import Answer
from bench.live.turns import Composer, Wording
from bench.workload import Arrival, Text


class Told:
    """Answers after ``wait_s`` with ``num_tokens`` events, or raises; keeps what it was sent."""

    def __init__(self, wait_s=0.01, error=None, answer=None, tokens=None):
        self.wait_s, self.error, self.tokens = wait_s, error, tokens
        self.answer = answer or Answer(text="said", completion_tokens=0)
        self.sent, self.times, self.in_flight, self.most = [], [], 0, 0

    async def start(self):
        self.times.append("start")

    def prepare(self, ask):
        return ask

    async def send(self, ask, on_tokens):
        self.sent.append(ask)
        self.times.append(asyncio.get_running_loop().time())
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        try:
            await asyncio.sleep(self.wait_s)
            if self.error is not None:
                raise self.error
            for _ in range(ask.num_output if self.tokens is None else self.tokens):
                on_tokens(1)
            return self.answer
        finally:
            self.in_flight -= 1

    async def close(self):
        pass


def arrival(at_s=0.0, **more):
    return Arrival(at_s, (Text(1, 4),), more.pop("num_output", 3), slo="interactive", **more)


async def driven(sender, *arrivals, duration_s=5.0, timeout_s=5.0):
    return await drive(sender, Composer(Wording()), arrivals, Pace(duration_s, timeout_s))


async def test_requests_are_sent_when_they_are_due(no_leak):
    sender = Told(wait_s=0.2)
    found = await driven(sender, *(arrival(0.05 * n) for n in range(6)))
    assert sender.most > 1, "nobody waits for another's answer"
    assert [row.arrival_s for row in found.rows] == pytest.approx([0.05 * n for n in range(6)])
    assert all(row.status == "ok" and len(row.token_times_s) == 3 for row in found.rows)
    assert len(found.late_s) == 6 and found.late_p99_s < 1.0
    assert (found.rows[0].ttft_slo_s, found.rows[0].tpot_slo_s) == (2.0, 0.05)


async def test_what_is_due_while_the_client_sleeps_counts_from_when_it_was_due():
    import time

    class Blocking(Told):
        def prepare(self, ask):
            time.sleep(0.4)  # a client that is too slow
            return ask

    found = await driven(Blocking(), *(arrival(0.0) for _ in range(3)))
    assert found.late_p99_s > 0.5, "it is measured"
    assert max(row.token_times_s[0] - row.arrival_s for row in found.rows) > 0.5, "and not hidden"


async def test_a_closed_loop_waits_for_its_answer_and_ends_with_the_run():
    sender = Told(wait_s=0.1)
    turns = [arrival(0.0, session="u"), *(arrival(session="u", after_s=0.1) for _ in range(20))]
    found = await driven(sender, *turns, duration_s=0.7)
    assert sender.most == 1
    assert 2 <= len(found.rows) <= 4
    gaps = [b.arrival_s - a.end_s for a, b in zip(found.rows, found.rows[1:], strict=False)]
    assert gaps == pytest.approx([0.1] * len(gaps), abs=0.05)
    assert [row.turn for row in found.rows] == list(range(len(found.rows)))


async def test_the_next_turn_quotes_what_was_answered():
    sender = Told()
    second = Arrival(0.0, (Text(1, 4), Text(9, 3), Text(2, 4)), 2, session="u", after_s=0.0)
    await driven(sender, arrival(0.0, session="u", answer=9), second)
    assert [turn.role for turn in sender.sent[1].turns] == ["user", "assistant", "user"]
    assert sender.sent[1].turns[1].parts == ("said",)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Refused("HTTP 429"), "refused"),
        (ValueError("HTTP 400"), "failed"),
        (ConnectionResetError(), "failed"),
        (EOFError("cut"), "failed"),
        (TimeoutError(), "timeout"),
    ],
)
async def test_every_end_has_a_name(error, status):
    found = await driven(Told(error=error), arrival())
    assert found.rows[0].status == status
    assert found.rows[0].code


async def test_silence_ends_at_the_deadline():
    found = await driven(Told(wait_s=9.0), arrival(0.1), timeout_s=0.2)
    assert found.rows[0].status == "timeout"
    assert found.rows[0].end_s == pytest.approx(0.3, abs=0.15)


async def test_an_answer_without_tokens_is_a_failure():
    found = await driven(Told(tokens=0), arrival())
    assert found.rows[0].status == "failed"


async def test_tokens_that_share_an_event_are_counted_by_the_usage():
    sender = Told(tokens=3, answer=Answer(completion_tokens=8))
    row = (await driven(sender, arrival())).rows[0]
    assert len(row.token_times_s) == 8
    assert list(row.token_times_s) == sorted(row.token_times_s)


class Steady:
    """Requests at equal distance."""

    name = "steady"

    def arrivals(self, rate, duration_s, seed):
        rate = rate or 10.0
        return iter([arrival(number / rate) for number in range(int(rate * duration_s))])


def load(**more):
    values = {"duration_s": 0.2, "warmup_s": 0.1, "seeds": (0, 1, 2), "max_late_s": 10.0, **more}
    return Load(workload=Steady(), **values)


async def test_a_late_client_makes_its_run_invalid():
    run = await Bench(load(max_late_s=0.0)).run(Contender("S", Told(), 2.0), 20.0, 0)
    assert "late" in run.invalid and run.late_p99_s > 0.0
    run = await Bench(load()).run(Contender("S", Told(), 2.0), 20.0, 0)
    assert not run.invalid
    assert (run.rate, run.num_gpus, run.warmup_s) == (20.0, 2.0, 0.1)
    assert run.duration_s == pytest.approx(0.3)
    assert (await Bench(load()).run(Contender("S", Told(), 1.0), None, 0)).rate == pytest.approx(10)


async def test_systems_take_turns():
    log = []

    class Logged(Told):
        def __init__(self, name):
            super().__init__(wait_s=0.0)
            self.name = name

        async def send(self, ask, on_tokens):
            if not log or log[-1] != self.name:
                log.append(self.name)
            return await super().send(ask, on_tokens)

    contenders = [Contender(name, Logged(name), 1.0) for name in "ab"]
    said = []
    bench = Bench(load(duration_s=0.1), lambda text, share: said.append(share))
    runs = await bench.sweep(contenders, [20.0, 40.0])
    assert [(run.system, run.rate, run.seed) for run in runs][:6] == [
        ("a", 20.0, 0), ("b", 20.0, 0), ("a", 40.0, 0), ("b", 40.0, 0),
        ("b", 20.0, 1), ("a", 20.0, 1),
    ]  # fmt: skip
    assert log[:4] == ["a", "b", "a", "b"]
    assert len(runs) == 12 and said == sorted(said) and said[-1] <= 1.0
    assert all(one.sender.times.count("start") == 1 for one in contenders)


async def test_goodput_of_a_server_that_refuses_what_is_too_much():
    class Bounded(Told):
        async def send(self, ask, on_tokens):
            if self.in_flight >= 2:
                raise Refused("full")
            return await super().send(ask, on_tokens)

    search = Bisection(16.0, tolerance=0.5, limits=(1.0, 256.0))
    found, runs = await Bench(load(duration_s=0.3, warmup_s=0.05)).goodput(
        Contender("S", Bounded(wait_s=0.05), 1.0), search
    )
    assert found.kind == "crossed" and 8 <= found.good < found.bad <= 256
    assert {run.seed for run in runs} == {0, 1, 2}
