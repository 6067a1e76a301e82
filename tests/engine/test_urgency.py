"""What engines tell policies: deadlines in their own time, turns, and who got nothing."""

import math

import msgspec
import pytest

from scheduler.registry import policies
from tests.engine.bench import Bench
from tests.engine.scripted import kv_of, make_job, next_token, publishing
from triptych.core.handoff import Endpoint, FirstToken, TransferRef
from triptych.core.ids import Handle, InstanceId
from triptych.engine.outcome import Ended, Reserved

PROMISE = TransferRef(Handle("secret"), 0, InstanceId("prefill-0"), Endpoint(), "layout", 0)
TPOT_S = 0.5


class Spy:
    """A bench whose policies are listened to."""

    def __init__(self, **config):
        self.bench = bench = Bench(**config)
        chosen = bench.engine._policies
        self.asked, self.batched = [], []
        spying = msgspec.structs.replace(chosen, order=self.order, batching=self.batching)
        bench.engine._policies = bench.engine._room._policies = spying
        self.chosen = chosen

    def order(self, waiting, moment):
        self.asked.append((list(waiting), moment))
        return self.chosen.order(waiting, moment)

    def batching(self, ready, budget, moment):
        self.batched.append((list(ready), moment))
        return self.chosen.batching(ready, budget, moment)

    def step(self, now):
        self.bench.now = now
        self.bench.step()
        return self.batched[-1] if self.batched else None


def test_deadlines_are_in_the_time_of_the_engine():
    spy = Spy()
    job = make_job("a", range(6), slo_ttft_s=2.0, slo_tpot_s=TPOT_S, priority=3, later_s=0.25,
                   budget_s=60.0)  # fmt: skip
    spy.bench.engine.submit(job, 10.0)
    spy.step(11.0)
    (work,), moment = spy.asked[0]
    assert moment == (11.0, 0)
    assert work.due_s == 12.0
    assert work.claim == (10.0, 70.0, TPOT_S, 0.25, 3, 6)


def test_tokens_are_due_a_gap_apart_from_when_the_first_came():
    spy = Spy()
    spy.bench.engine.submit(make_job("a", range(6), slo_ttft_s=9.0, slo_tpot_s=TPOT_S), 10.0)
    dues = [spy.step(now)[0][0].due_s for now in (10.0, 13.0, 13.1, 17.0)]
    assert dues == [19.0, 10.5, 11.0, 11.5]


def test_without_bounds_nothing_is_due():
    spy = Spy()
    spy.bench.engine.submit(make_job("a", range(6)), 10.0)
    assert [spy.step(now)[0][0].due_s for now in (10.0, 13.0, 13.1)] == [math.inf] * 3


def test_a_resumed_answer_owes_what_it_owed():
    spy = Spy()
    job = make_job("a", range(6), generated=(1, 2), slo_ttft_s=-0.3, slo_tpot_s=TPOT_S)
    spy.bench.engine.submit(job, 10.0)
    dues = [spy.step(now)[0][0].due_s for now in (10.0, 13.0, 13.1)]
    assert dues == pytest.approx([9.7, 10.2, 10.7])


@pytest.mark.parametrize("tpot_s", [TPOT_S, None])
def test_kv_that_came_makes_the_next_token_due_at_once(tpot_s):
    spy = Spy()
    engine, executor = spy.bench.engine, spy.bench.executor
    job = make_job("a", range(6), kv=PROMISE, slo_ttft_s=9.0, slo_tpot_s=tpot_s)
    engine.submit(job, 10.0)
    spy.step(10.0)
    assert spy.asked[0][0][0].claim.prefill_tokens == 0
    (reserved,) = spy.bench.of(Reserved)
    executor.write_kv(job, list(range(6)), reserved.blocks, 0, 6)
    engine.arrived_all("a", FirstToken(next_token(kv_of(job, list(range(6))))))
    dues = [spy.step(now)[0][0].due_s for now in (12.0, 13.0, 14.0)]
    inf = math.inf
    assert dues == ([-inf, 12.5, 13.0] if tpot_s else [inf, inf, inf])


def test_turns_count_steps_and_admissions():
    spy = Spy(max_sequences=2)
    for name in "abcd":
        spy.bench.engine.submit(make_job(name, range(6), max_tokens=2), 0.0)
    spy.bench.run()
    assert [moment.number for _, moment in spy.batched] == list(range(len(spy.batched)))
    assert [moment.number for _, moment in spy.asked] == list(range(len(spy.asked)))
    assert len(spy.bench.of(Ended)) == 4


def test_an_admission_that_fails_is_no_turn():
    spy = Spy(num_blocks=6, prefix=False)
    spy.bench.engine.submit(make_job("a", range(13), max_tokens=4), 0.0)
    spy.step(0.0)
    spy.bench.engine.submit(make_job("b", range(13), max_tokens=4), 0.0)
    for now in range(1, 3):
        spy.step(float(now))
    assert [moment.number for _, moment in spy.asked] == [0, 1, 1]


def test_who_is_passed_over_is_counted_until_it_is_taken():
    spy = Spy(token_budget=8, max_sequences=4)
    for name in "abc":
        spy.bench.engine.submit(publishing(name, range(16)), 0.0)
    for _ in range(6):
        spy.step(0.0)
    seen = [{work.job: work.num_passed_over for work in ready} for ready, _ in spy.batched]
    assert seen[:3] == [{"a": 0, "b": 0, "c": 0}, {"a": 0, "b": 1, "c": 1}, {"b": 2, "c": 2}]
    assert [each["c"] for each in seen[3:]] == [3, 4, 0]


@pytest.mark.parametrize("name", ["decode_first", "mlfq", "edf", "slack"])
def test_served_seconds_are_those_of_its_steps(name):
    spy = Spy(batching=name)
    spy.bench.engine.submit(make_job("a", range(20), max_tokens=3), 0.0)
    spy.bench.run()
    assert [ready[0].served_s for ready, _ in spy.batched] == [0.0, 0.25, 0.5, 0.75]
    assert policies(spy.bench.engine._config).batching is not None
