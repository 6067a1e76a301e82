"""Runs of steps: how long they may be, and that they give what single steps give."""

import asyncio
import logging
import time

import pytest

from scheduler.registry import policies
from tests.engine.scripted import ScriptedExecutor, expected, make_job, publishing
from tests.patience import PATIENCE_S
from triptych.cache.kv import KvCache
from triptych.core.clock import MonotonicClock
from triptych.core.config import EngineConfig
from triptych.core.errors import InvariantBroken
from triptych.core.plan import LanguageResult
from triptych.engine.language import LanguageEngine
from triptych.engine.outcome import Drew, Dropped, Ended
from triptych.engine.pump import Pump
from triptych.engine.runs import most_steps
from triptych.engine.vision import VisionEngine


def make_engine(*, blocks=64, steps=8, are_told=True):
    config = EngineConfig(token_budget=64, chunk_tokens=32, max_sequences=8)
    cache = KvCache(blocks, 4, "model")
    engine = LanguageEngine(config, cache, policies(config), recomputes_items=True, max_tokens=1000)
    engine.max_steps, engine.are_told = steps, are_told
    return engine


def after_prefill(engine, executor, *jobs):
    """The next step, of decodes only."""
    for job in jobs:
        engine.submit(job, 0.0)
    step = engine.plan(0.0)
    engine.apply(step, executor.execute(step.plan), 1.0)
    return engine.plan(1.0)


def test_a_step_without_work_is_one_step():
    """Such a step tells of outcomes only."""
    cache = KvCache(8, 4, "model")
    assert most_steps([], [], cache, 4096) == 1


@pytest.mark.parametrize(
    ("jobs", "options", "steps"),
    [
        ([make_job("a", range(5), max_tokens=20)], {}, 8),
        ([make_job("a", range(5), max_tokens=4)], {}, 3),
        ([make_job("a", range(5), max_tokens=20, stop=[999])], {}, 8),
        ([make_job("a", range(5), max_tokens=20, stop=[999])], {"are_told": False}, 1),
        ([make_job("a", range(5), max_tokens=20)], {"steps": 1}, 1),
        ([make_job("a", range(5), max_tokens=9), make_job("b", range(50, 58), max_tokens=9)],
         {"blocks": 6}, 4),
    ],
)  # fmt: skip
def test_how_long(jobs, options, steps):
    engine, executor = make_engine(**options), ScriptedExecutor(4)
    step = after_prefill(engine, executor, *jobs)
    assert step.plan.steps == steps
    if options.get("are_told", True):
        for segment in step.plan.segments:
            assert len(segment.blocks) * 4 >= segment.end + steps - 1


def test_a_prompt_beside_it_ends_runs():
    engine, executor = make_engine(), ScriptedExecutor(4)
    engine.submit(make_job("a", range(5), max_tokens=20), 0.0)
    step = engine.plan(0.0)
    engine.apply(step, executor.execute(step.plan), 1.0)
    engine.submit(make_job("b", range(40)), 1.0)
    assert engine.plan(1.0).plan.steps == 1


def test_who_hands_over_is_not_decoded():
    engine, executor = make_engine(), ScriptedExecutor(4)
    assert after_prefill(engine, executor, publishing("a", range(5))) is None


def test_one_that_ends_in_a_run_keeps_its_blocks_until_the_run_is_over():
    engine, executor = make_engine(), ScriptedExecutor(4)
    long = make_job("long", range(5), max_tokens=20)
    output = expected(make_job("short", range(20, 26), max_tokens=20))
    last = next(place for place in range(2, 7) if output[place] not in output[:place])
    short = make_job("short", range(20, 26), max_tokens=20, stop=[output[last]])
    step = after_prefill(engine, executor, long, short)
    plan, said = step.plan, []
    assert not engine.has_news()
    for number in range(1, 8):
        drawn = executor.execute(plan).drawn
        outcomes = engine.advance(step, drawn, 0.25, 2.0)
        said += [one.token.id for one in outcomes if one.job == "short"]
        assert not any(isinstance(one, Ended) for one in outcomes)
        assert engine.has_news() == (number >= last)
        plan = plan.following(drawn)
    assert said == output[1 : last + 1], "what was drawn behind the end was told"
    held = {row.owner for row in engine.census()[0] if row.kind == "kv_block"}
    assert held == {"long", "short"}
    outcomes = engine.apply(step, executor.execute(plan), 3.0)
    (end,) = [one for one in outcomes if isinstance(one, Ended)]
    assert (end.job, end.reason) == ("short", "stop")
    held = {row.owner for row in engine.census()[0] if row.kind == "kv_block"}
    assert held == {"long"}
    engine.check()


def test_a_step_that_fails_in_a_run_takes_nobody_with_it_who_was_over():
    engine, executor = make_engine(), ScriptedExecutor(4)
    output = expected(make_job("short", range(20, 26)))
    short = make_job("short", range(20, 26), stop=[output[1]])
    step = after_prefill(engine, executor, make_job("long", range(5)), short)
    engine.advance(step, executor.execute(step.plan).drawn, 0.25, 2.0)
    ends = {one.job: one for one in engine.execution_failed(step)}
    assert ends["short"].reason == "stop"
    assert isinstance(ends["long"], Dropped)
    assert engine.is_idle


@pytest.mark.parametrize("is_run", [True, False])
def test_times_and_sums_are_those_of_single_steps(is_run):
    engine, executor = make_engine(steps=8 if is_run else 1), ScriptedExecutor(4)
    step, now = after_prefill(engine, executor, make_job("a", range(5), max_tokens=6)), 1.0
    while True:
        plan, outcomes = step.plan, []
        for _ in range(step.plan.steps - 1):
            drawn = executor.execute(plan).drawn
            now += 1.0
            outcomes += engine.advance(step, drawn, 0.25, now)
            plan = plan.following(drawn)
        now += 1.0
        outcomes += engine.apply(step, executor.execute(plan), now)
        if ends := [one for one in outcomes if isinstance(one, Ended)]:
            break
        step = engine.plan(now)
    timing = ends[0].timing
    assert (timing.compute_s, timing.prefill_s) == (6 * 0.25, 0.25)
    assert (timing.first_steps.count, timing.first_steps.tokens) == (1, 5)
    assert engine._turns.number == 6, "policies that let nobody wait for ever count steps"
    later = timing.later_steps
    assert (later.count, later.decodes, later.context) == (5, 5, 5 + 6 + 7 + 8 + 9)


def test_what_is_no_step_of_the_run_changes_nothing():
    engine, executor = make_engine(), ScriptedExecutor(4)
    step = after_prefill(engine, executor, make_job("a", range(5), max_tokens=20))
    drawn = executor.execute(step.plan).drawn
    with pytest.raises(InvariantBroken, match="advance"):
        engine.advance(step, (*drawn, *drawn), 0.25, 2.0)
    engine.apply(step, LanguageResult(drawn, 0.25), 2.0)
    with pytest.raises(InvariantBroken, match="advance"):
        engine.advance(step, drawn, 0.25, 2.0)
    assert [one.token.index for one in engine.poll() if isinstance(one, Drew)] == []
    with pytest.raises(InvariantBroken, match="vision"):
        VisionEngine.advance(None, None, (), 0.0, 0.0)


def test_blocks_of_a_run_that_is_ended_are_free_again():
    engine, executor = make_engine(blocks=6), ScriptedExecutor(4)
    step = after_prefill(engine, executor, make_job("a", range(5), max_tokens=20))
    assert len(step.plan.segments[0].blocks) == 4
    engine.submit(make_job("b", range(30, 40), max_tokens=2), 1.0)
    assert engine.has_news()
    engine.apply(step, executor.execute(step.plan), 2.0)
    assert {s.job for s in engine.plan(2.0).plan.segments} == {"a", "b"}
    engine.check()


def test_who_comes_to_a_full_instance_is_told_of_and_has_a_deadline():
    engine, executor = make_engine(), ScriptedExecutor(4)
    jobs = [make_job(f"{n}", range(10 * n, 10 * n + 5), max_tokens=20) for n in range(8)]
    step = after_prefill(engine, executor, *jobs)
    assert step.is_run
    assert not engine.has_news()
    engine.submit(make_job("late", range(5), budget_s=0.5), 1.0)
    assert engine.has_news(), "nobody was told that it waits"
    engine.apply(step, executor.execute(step.plan), 1.1)
    step = engine.plan(1.1)
    assert not engine.has_news()
    assert engine.next_deadline() == 1.5
    engine.apply(step, executor.execute(step.plan), 1.2)


class Runner(ScriptedExecutor):
    """Runs as a real one does; ``behind`` is called behind each step that goes on."""

    def __init__(self, behind):
        super().__init__(4)
        self.behind = behind
        self.is_interrupted = False
        self.lengths = []

    def run(self, plan, told):
        steps = plan.steps
        for number in range(1, steps + 1):
            result = self.execute(plan)
            if number == steps or self.is_interrupted:
                break
            told(result.drawn, 0.25)
            self.behind(number)
            plan = plan.following(result.drawn)
        self.is_interrupted = False
        self.lengths.append(number)
        return result

    def interrupt(self):
        self.is_interrupted = True


async def test_the_pump_hears_each_step_and_ends_a_run_for_who_comes():
    """The second job comes while the first one's run is under way, which waits until that is
    heard."""
    said, heard = [], asyncio.Event()
    loop, clock = asyncio.get_running_loop(), MonotonicClock()
    second = make_job("second", range(30, 40), max_tokens=3)

    def behind(number):
        if number == 2 and len(runner.lengths) == 1:
            asyncio.run_coroutine_threadsafe(come(), loop).result(PATIENCE_S)

    async def come():
        assert [one.token.index for one in said if isinstance(one, Drew)] == [0, 1, 2]
        engine.submit(second, clock.now())
        pump.wake()

    def sink(outcomes):
        said.extend(outcomes)
        heard.set()

    def begin(plan, told):
        return lambda: runner.run(plan, told)

    runner, engine = Runner(behind), make_engine(steps=8)
    pump = Pump(engine, runner, clock, sink, begin, runner.interrupt)
    running = asyncio.create_task(pump.run())
    first = make_job("first", range(5), max_tokens=20)
    engine.submit(first, clock.now())
    pump.wake()
    async with asyncio.timeout(PATIENCE_S):
        while sum(isinstance(one, Ended) for one in said) < 2:
            heard.clear()
            await heard.wait()
    for job in (first, second):
        drawn = [one.token.id for one in said if isinstance(one, Drew) and one.job == job.header.id]
        assert drawn == expected(job)
    assert runner.lengths[:2] == [1, 3], "the run went on although somebody had come"
    assert max(runner.lengths) == 8
    await pump.close()
    await running


@pytest.mark.parametrize("is_ours", [True, False])
async def test_what_goes_wrong_in_the_middle_of_a_run_is_not_lost(is_ours, caplog):
    """An invariant that breaks fails the jobs of the step, anything else ends the pump."""
    caplog.set_level(logging.CRITICAL, logger="triptych.engine.pump")
    said, ended = [], asyncio.Event()

    def sink(outcomes):
        said.extend(outcomes)
        if any(isinstance(one, Dropped) for one in outcomes):
            ended.set()
        elif any(isinstance(one, Drew) and one.token.index == 3 for one in outcomes):
            raise InvariantBroken("a bug") if is_ours else RuntimeError("a bug")

    def begin(plan, told):
        return lambda: runner.run(plan, told)

    runner, engine = Runner(lambda number: time.sleep(0.02)), make_engine(steps=8)
    pump = Pump(engine, runner, MonotonicClock(), sink, begin, runner.interrupt)
    engine.submit(make_job("a", range(5), max_tokens=20), 0.0)
    running = asyncio.create_task(pump.run())
    async with asyncio.timeout(PATIENCE_S):
        if is_ours:
            await ended.wait()
        else:
            with pytest.raises(RuntimeError, match="a bug"):
                await running
    assert runner.lengths[1] < 8, "the run went on"
    assert engine.is_idle == is_ours
    await pump.close()
    if is_ours:
        await running


async def test_a_deadline_that_comes_in_a_run_ends_it():
    """All places are taken: who comes is not admitted, and yet dropped in time."""
    said, ended = [], asyncio.Event()

    def sink(outcomes):
        said.extend(outcomes)
        if any(isinstance(one, Dropped) for one in outcomes):
            ended.set()

    def behind(number):
        if len(runner.lengths) == 1 and number == 1:
            asyncio.run_coroutine_threadsafe(come(), loop).result(PATIENCE_S)
        time.sleep(0.1)

    async def come():
        engine.submit(make_job("late", range(5), budget_s=0.25), clock.now())
        for one in engine._roster.waiting:
            one.is_foreseen = True
        pump.wake()

    def begin(plan, told):
        return lambda: runner.run(plan, told)

    loop, clock = asyncio.get_running_loop(), MonotonicClock()
    runner, engine = Runner(behind), make_engine(steps=100, blocks=400)
    pump = Pump(engine, runner, clock, sink, begin, runner.interrupt)
    for number in range(8):
        engine.submit(make_job(f"{number}", range(9 * number, 9 * number + 5), max_tokens=99), 0.0)
    running = asyncio.create_task(pump.run())
    async with asyncio.timeout(PATIENCE_S):
        await ended.wait()
    (late,) = [one for one in said if isinstance(one, Dropped)]
    assert (late.job, late.code) == ("late", "deadline_exceeded")
    assert runner.lengths[1] < 20
    pump_closed = asyncio.create_task(pump.close())
    runner.interrupt()
    await pump_closed
    await running
