"""Cores that are given out in slices: who waits how long for one, by hand."""

import asyncio
import random

import pytest

from simulator.fair import FairCores, Runner
from simulator.world import World

SLICE_S, TICK_S = 0.0014, 0.004


def run(main, speeds=(1.0, 2.0)):
    world = World()
    try:
        return world.run_until_complete(main(world, FairCores(world, speeds, SLICE_S, TICK_S)))
    finally:
        world.close()


def ends_of(jobs, speeds=(1.0, 2.0)):
    """When jobs ``(begin_s, work_s, weight)`` end, in the order of ``jobs``."""

    async def main(world, cores):
        async def one(begin_s, work_s, weight):
            await asyncio.sleep(begin_s)
            await cores.run(work_s, Runner(weight))
            return world.time()

        found = await asyncio.gather(*(one(*job) for job in jobs))
        await asyncio.sleep(1.0)
        assert cores.num_running == 0
        assert cores.work_s == pytest.approx(sum(work_s for _, work_s, _ in jobs))
        return found

    return run(main, speeds)


@pytest.mark.parametrize("speeds", [(1.0, 2.0), (1.0, 1.5)])
def test_those_that_have_a_core_each_do_not_wait(speeds):
    both_s = 2.0 / speeds[1]
    assert ends_of([(0, 0.1, 1.0), (0, 0.1, 1.0)], speeds) == pytest.approx([0.1 * both_s] * 2)


def test_two_on_one_core_take_turns_by_ticks():
    """Each keeps the core until the tick behind its slice. Who came later is first: both had as
    much, and it waits."""
    earlier, later = ends_of([(0, 0.010, 1.0), (0, 0.010, 1.0)], (1.0,))
    # 0-4 the later one, 4-8 the other, 8-12, 12-16, and the later one has 2 ms left.
    assert later == pytest.approx(0.018, abs=1e-5)
    assert earlier == pytest.approx(0.020, abs=1e-5)


@pytest.mark.parametrize(
    ("wakes_s", "begins_s"),
    [
        (0.0005, 0.004),  # inside the slice of who runs: the next tick
        (0.0045, 0.008),  # its next slice began at the tick
        (0.0060, 0.0060),  # that one is over as well
    ],
)
def test_who_wakes_beside_one_that_works_waits_for_its_slice(wakes_s, begins_s):
    _, end_s = ends_of([(0, 0.1, 1.0), (wakes_s, 0.0002, 1.0)], (1.0,))
    assert end_s - 0.0002 == pytest.approx(begins_s, abs=1e-5)


def test_an_idle_core_takes_who_waits_elsewhere():
    """The third waits behind the first; when the second is done, it need not."""
    ends = ends_of([(0, 0.1, 1.0), (0, 0.001, 1.0), (0.0001, 0.010, 1.0)])
    assert ends[2] == pytest.approx(0.011, abs=1e-5)


def test_a_nice_thread_yields():
    """Of 1.0 s on one core, it has a ninth of the other's."""
    heavy_s, nice_s = ends_of([(0, 0.8, 1.0), (0, 0.8, 1 / 9)], (1.0,))
    assert heavy_s == pytest.approx(0.8 * 10 / 9, rel=0.02)
    assert nice_s == pytest.approx(1.6, abs=1e-4)


def test_a_thread_that_goes_on_keeps_its_core_and_its_slice():
    """What it does one after the other is not taken apart by who waits."""

    async def main(world, cores):
        loop, times = Runner(), []
        hog = asyncio.create_task(cores.run(0.02))
        await asyncio.sleep(0.0045)
        for _ in range(3):  # from the tick at 8 ms on
            await cores.run(0.0003, loop)
            times.append(world.time())
        await hog
        return times

    assert run(main, (1.0,)) == pytest.approx([0.0083, 0.0086, 0.0089], abs=1e-5)


def test_a_job_that_is_paused_sleeps_and_goes_on():
    async def main(world, cores):
        heard = {}

        def mark(name):
            return lambda: heard.setdefault(name, world.time())

        runner = Runner()
        first = cores.begin(0.003, mark("first"), runner)
        cores.at(first, 0.002, mark("on the way"))
        await asyncio.sleep(0.001)
        cores.pause(first)
        assert cores.num_running == 0
        await asyncio.sleep(0.002)
        other = cores.begin(0.002, mark("other"))
        cores.resume(first)
        late = cores.begin(1.0, mark("late"))
        cores.at(late, 0.5, mark("never"))
        cores.cancel(late)
        cores.cancel(late)
        await asyncio.sleep(1.0)
        assert cores.num_running == 0
        cores.cancel(other)
        return heard

    assert run(main, (1.0,)) == pytest.approx(
        {"other": 0.005, "on the way": 0.006, "first": 0.007}, abs=1e-5
    )


def test_one_that_had_less_than_its_share_is_before_one_that_works():
    """It waited for a tick; owed that, it has the core at once, inside the slice of who works."""

    async def main(world, cores):
        sleeper, heard = Runner(), []
        cores.begin(1.0, lambda: None)
        await asyncio.sleep(0.0041)
        await cores.run(0.0001, sleeper)  # from the tick at 8 ms on
        assert sleeper.lag == 0.0
        await asyncio.sleep(0.0005)
        began_s = world.time()
        assert sleeper.lag > 0.001
        await cores.run(0.0002, sleeper)
        heard.append(world.time() - began_s)
        return heard

    assert run(main, (1.0,)) == pytest.approx([0.0002], abs=1e-5)


@pytest.mark.parametrize(("rest_s", "begins_s"), [(0.001, 0.012), (0.003, 0.006)])
def test_one_that_had_more_than_its_share_waits_for_that_once(rest_s, begins_s):
    """It had 3 ms more than the average. A rest as long makes it equal to who works, whose slice is
    over at 6 ms. With 2 ms left it is 4 ahead of the other: equal at 10 ms, and the next tick is at
    12."""

    async def main(world, cores):
        eager = Runner()
        cores.begin(1.0, lambda: None)
        await asyncio.sleep(0.006)
        eager.lag, eager.since_s = -0.003, world.time() - rest_s
        await cores.run(0.0001, eager)
        return world.time() - 0.0001

    assert run(main, (1.0,)) == pytest.approx(begins_s, abs=1e-5)


@pytest.mark.parametrize("speeds", [(1.0,), (1.0, 1.7), (1.0, 2.0, 2.5)])
@pytest.mark.parametrize("seed", range(4))
def test_no_core_is_idle_while_somebody_waits(seed, speeds):
    """Random jobs of random threads, some paused for a while, some cancelled: after every change
    those that run are those that have a core, and all that was not cancelled is done."""

    async def main(world, cores):
        source, over, cancelled = random.Random(seed), [], set()

        def look():
            running = [each for each in cores._running if each is not None]
            if len(running) < len(speeds):
                assert not cores._queue
            assert cores._cores.num_running == sum(each.job is not None for each in running)

        async def one(number):
            await asyncio.sleep(source.random() / 4)
            runner = Runner(source.choice((1.0, 0.1)))
            for part in range(3):
                work_s = source.expovariate(300.0)
                job = cores.begin(work_s, lambda at=(number, part): over.append(at), runner)
                cores.at(job, work_s / 2, look)
                look()
                if source.random() < 0.3:
                    await asyncio.sleep(source.expovariate(500.0))
                    cores.pause(job)
                    look()
                    await asyncio.sleep(source.expovariate(500.0))
                    cores.resume(job)
                elif source.random() < 0.1:
                    await asyncio.sleep(source.expovariate(500.0))
                    if not job.is_over:
                        cancelled.add((number, part))
                    cores.cancel(job)
                look()
                while not job.is_over:
                    await asyncio.sleep(0.001)

        await asyncio.gather(*map(one, range(40)))
        await asyncio.sleep(0.1)
        look()
        assert cores.num_running == 0
        return over, cancelled, world.time()

    over, cancelled, end_s = run(main, speeds)
    assert len(set(over)) == len(over)
    assert set(over) == {(n, part) for n in range(40) for part in range(3)} - cancelled
    assert cancelled
    assert run(main, speeds) == (over, cancelled, end_s)


def test_one_that_had_more_than_the_average_leaves_the_core_to_whom_less_is_due_sooner():
    """At the tick both have work: the nice one's slice ends later, but only it is entitled."""
    _, end_s = ends_of([(0, 0.1, 1.0), (0.0001, 0.001, 0.1)], (1.0,))
    assert end_s == pytest.approx(0.005, abs=1e-5)


def test_what_was_had_alone_on_a_core_is_forgotten_but_for_a_tick():
    """A nice thread that had a core for a second, ten by its weight, beside one on the other."""

    async def main(world, cores):
        nice = Runner(0.1)
        cores.begin(9.0, lambda: None)
        await cores.run(1.0, nice)
        await asyncio.sleep(0.001)
        cores.begin(9.0, lambda: None)
        began_s = world.time()
        await cores.run(0.001, nice)
        return world.time() - began_s

    assert 0.03 < run(main) < 0.2


def test_who_is_told_may_begin_something_where_another_job_ends_as_well():
    """Two end at once. The first one's call begins a third that is so urgent that it takes the core
    of the second, whose end is not told yet."""
    unit_s = 2.0**-10

    async def main(world, cores):
        heard = []

        def tell(name):
            return lambda: heard.append((name, world.time()))

        def more():
            tell("first")()
            cores.begin(unit_s, tell("third"), Runner(10.0))

        cores.begin(unit_s, more)
        await asyncio.sleep(unit_s / 2)
        cores.begin(unit_s / 2, tell("second"))
        await asyncio.sleep(0.1)
        assert cores.num_running == cores._cores.num_running == 0
        return heard

    names, times = zip(*run(main), strict=True)
    assert names == ("first", "second", "third")
    assert times == pytest.approx((unit_s, unit_s, 2 * unit_s), abs=1e-5)
