import asyncio
import logging
import os
import sys
import threading

import pytest

from scheduler.registry import policies
from tests.engine.scripted import ScriptedExecutor, expected, make_job, publishing
from tests.patience import PATIENCE_S
from triptych.cache.kv import KvCache
from triptych.core.clock import ManualClock, MonotonicClock
from triptych.core.config import EngineConfig
from triptych.core.errors import InstanceLost
from triptych.core.plan import LanguageResult
from triptych.engine.language import LanguageEngine
from triptych.engine.outcome import Drew, Dropped, Ended
from triptych.engine.pump import Pump


class Hall:
    """A pump around a scripted executor that can be held up, broken, and watched."""

    def __init__(self, clock=None):
        self.clock = clock or MonotonicClock()
        config = EngineConfig(token_budget=16, chunk_tokens=8, max_sequences=8)
        self.engine = LanguageEngine(
            config,
            KvCache(64, 4, "model"),
            policies(config),
            recomputes_items=True,
            max_tokens=1000,
        )
        self.executor = ScriptedExecutor(4)
        self.said = []
        self.heard = asyncio.Event()
        self.threads = set()
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.breaks = {}
        self.num_plans = 0
        self.pump = Pump(self, self, self.clock, self.sink)

    # The engine, counted.

    def plan(self, now):
        self.num_plans += 1
        return self.engine.plan(now)

    def __getattr__(self, name):
        return getattr(self.engine, name)

    # The executor.

    def execute(self, plan):
        self.threads.add(threading.current_thread().name)
        self.entered.set()
        assert self.gate.wait(20)
        for segment in plan.segments:
            if segment.job in self.breaks:
                return self.breaks[segment.job](plan)
        return self.executor.execute(plan)

    def sink(self, outcomes):
        assert threading.current_thread() is threading.main_thread()
        self.said += outcomes
        self.heard.set()

    async def until(self, condition):
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                self.heard.clear()
                await self.heard.wait()

    def submit(self, job):
        self.engine.submit(job, self.clock.now())
        self.pump.wake()

    def tokens(self, name):
        return [said.token.id for said in self.said if isinstance(said, Drew) and said.job == name]

    def ends(self):
        return {said.job: said for said in self.said if isinstance(said, Ended | Dropped)}


@pytest.fixture
async def hall():
    hall = Hall()
    running = asyncio.create_task(hall.pump.run())
    yield hall
    hall.gate.set()
    await hall.pump.close()
    await running


async def test_all_get_their_tokens_from_one_thread(hall):
    jobs = [make_job(f"{index}", range(index, index + 19), max_tokens=7) for index in range(12)]
    for job in jobs:
        hall.submit(job)
    await hall.until(lambda: len(hall.ends()) == 12)
    for job in jobs:
        assert hall.tokens(job.header.id) == expected(job)
    assert len(hall.threads) == 1
    assert await hall.pump.drain(5.0)


def explode(plan):
    raise RuntimeError("no memory is left")


def too_short(plan):
    return LanguageResult((), 0.0)


@pytest.mark.parametrize("failure", [explode, too_short])
async def test_failure_fails_the_jobs_of_its_step_and_the_pump_goes_on(hall, failure, caplog):
    caplog.set_level(logging.CRITICAL, logger="triptych.engine.pump")
    hall.breaks["bad"] = failure
    hall.submit(make_job("bad", range(30)))
    good = make_job("good", range(50, 70))
    await hall.until(lambda: "bad" in hall.ends())
    hall.submit(good)
    await hall.until(lambda: "good" in hall.ends())
    assert hall.ends()["bad"].code == "internal"
    assert hall.tokens("good") == expected(good)
    assert hall.engine.is_idle
    assert hall.engine.census()[0] == []


async def test_the_loss_of_what_computes_ends_the_pump_and_answers_nobody():
    """The jobs are not over: who has them learns it by the end of a session, and tries again."""
    hall = Hall()

    def lose(plan):
        raise InstanceLost("a rank is gone")

    hall.breaks["a"] = lose
    running = asyncio.create_task(hall.pump.run())
    hall.submit(make_job("a", range(30)))
    with pytest.raises(InstanceLost, match="a rank is gone"):
        async with asyncio.timeout(PATIENCE_S):
            await running
    assert hall.ends() == {}
    await hall.pump.close()


async def test_idle_pump_does_nothing(hall):
    hall.submit(make_job("a", range(5)))
    await hall.until(lambda: "a" in hall.ends())
    await asyncio.sleep(0.05)
    before = hall.num_plans
    await asyncio.sleep(0.2)
    assert hall.num_plans == before


async def test_cancel_during_a_step_waits_for_it_and_others_are_told_at_once(hall):
    hall.gate.clear()
    hall.submit(make_job("a", range(5)))
    await asyncio.to_thread(hall.entered.wait, 20)
    hall.submit(make_job("b", range(5)))
    assert not hall.engine.cancel("a")
    assert hall.engine.cancel("b")
    hall.pump.wake()
    await hall.until(lambda: "b" in hall.ends())
    assert "a" not in hall.ends()
    hall.gate.set()
    await hall.until(lambda: "a" in hall.ends())
    assert hall.ends()["a"].code == "cancelled"
    assert hall.engine.is_idle


async def test_deadline_wakes_a_sleeping_pump(hall):
    first = make_job("a", range(60), max_tokens=100)
    hall.submit(publishing("p", range(5)))
    await hall.until(lambda: "p" in hall.ends())
    for index in range(8):  # all places are taken by jobs that wait for ever
        hall.engine.submit(
            make_job(f"w{index}", range(5), kv=_promise(), budget_s=30.0), hall.clock.now()
        )
    hall.engine.submit(make_job("late", first.prompt.token_ids, budget_s=0.1), hall.clock.now())
    hall.pump.wake()
    await hall.until(lambda: "late" in hall.ends())
    assert hall.ends()["late"].code == "deadline_exceeded"
    for index in range(8):
        assert hall.engine.cancel(f"w{index}")


def _promise():
    from tests.engine.test_language_machine import promise

    return promise()


async def test_drain_waits_for_leases_and_gives_up_in_time(hall):
    hall.submit(publishing("p", range(5)))
    await hall.until(lambda: "p" in hall.ends())
    assert not await hall.pump.drain(0.05)
    draining = asyncio.create_task(hall.pump.drain(10.0))
    await asyncio.sleep(0)
    hall.engine.release("p")
    hall.pump.wake()
    assert await draining


async def test_cancelled_run_still_applies_the_step_in_flight():
    hall = Hall(ManualClock())
    running = asyncio.create_task(hall.pump.run())
    hall.gate.clear()
    hall.submit(make_job("a", range(5), max_tokens=1))
    await asyncio.to_thread(hall.entered.wait, 20)
    running.cancel()
    await asyncio.sleep(0.02)
    running.cancel()
    await asyncio.sleep(0.02)
    assert not running.done()
    hall.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert hall.ends()["a"].reason == "length"
    assert hall.engine.is_idle
    await hall.pump.close()


async def test_close_before_run_ends_the_thread():
    hall = Hall(ManualClock())
    await hall.pump.close()
    await hall.pump.run()
    assert hall.num_plans == 0


def niceness():
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a niceness for each thread")
async def test_its_thread_may_yield_to_others():
    hall, ours = Hall(), niceness()
    hall.pump.be_nice(3)
    assert hall.pump._thread.submit(niceness).result() == min(19, ours + 3)
    assert niceness() == ours
    await hall.pump.close()


async def test_a_sandbox_that_forbids_it_costs_nothing_else(monkeypatch):
    def refused(*_):
        raise PermissionError

    monkeypatch.setattr(os, "setpriority", refused)
    hall, ours = Hall(), niceness()
    hall.pump.be_nice(3)
    assert hall.pump._thread.submit(niceness).result() == ours
    await hall.pump.close()
