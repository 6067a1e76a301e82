"""Event loops and steps that share an interpreter, on cores in virtual time."""

import asyncio

import pytest

from simulator.cores import Cores
from simulator.fair import FairCores, Runner
from simulator.interpreter import Free, Held, Lock, Thread
from simulator.world import World


def run(main, speeds=(1.0, 2.0)):
    world = World()
    try:
        return world.run_until_complete(main(world, Cores(world, speeds)))
    finally:
        world.close()


def test_a_step_that_is_held_again_and_again_does_its_work_and_no_more():
    """Also while nothing else runs, so that the cores begin to count anew."""

    async def main(world, cores):
        lock, heard = Lock(cores), {}
        lock.begin(1.0, lambda: heard.setdefault("step", world.time()), Runner())
        for _ in range(4):
            await asyncio.sleep(0.2)
            lock.hold()
            assert cores.num_running == 0
            await asyncio.sleep(1.0)
            lock.free()
        await asyncio.sleep(1.0)
        assert cores.work_s == pytest.approx(1.0)
        return heard

    assert run(main) == pytest.approx({"step": 5.0})


def test_a_loop_and_the_steps_beside_it_take_turns():
    """The step of two seconds stands still for the loop's, also one that begins meanwhile."""

    async def main(world, cores):
        lock, heard = Lock(cores), {}
        thread, held = Thread(cores, lock), Held(lock, Runner())
        lock.begin(2.0, lambda: heard.setdefault("step", world.time()), Runner())
        await asyncio.sleep(0.5)
        loop = asyncio.create_task(thread.run(1.0))
        await asyncio.sleep(0.5)
        late = held.begin(1.0, lambda: heard.setdefault("late", world.time()))
        held.at(late, 0.5, lambda: heard.setdefault("half", world.time()))
        assert cores.num_running == 1
        await loop
        heard["loop"] = world.time()
        await asyncio.sleep(5.0)
        return heard

    assert run(main) == pytest.approx({"loop": 1.5, "half": 2.0, "late": 2.5, "step": 3.0})


def test_a_step_that_leaves_the_lock_alone_needs_it_behind():
    """It is computed while the loop works, and is over when the loop waits."""

    async def main(world, cores):
        lock, heard = Lock(cores), {}
        thread, free = Thread(cores, lock), Free(cores, lock, Runner())

        def mark(name):
            return lambda: heard.setdefault(name, world.time())

        free.begin(1.0, mark("first"))
        assert cores.num_running == 1
        loop = asyncio.create_task(thread.run(1.5))
        await asyncio.sleep(0.5)
        assert cores.num_running == 2
        second = free.begin(0.25, mark("second"))
        free.at(second, 0.125, mark("half"))
        await loop
        free.begin(0.5, mark("third"))
        await asyncio.sleep(1.0)
        return heard

    heard = run(main, speeds=(1.0, 2.0, 3.0))
    assert heard == pytest.approx({"half": 0.625, "first": 1.5, "second": 1.5, "third": 2.0})


def test_a_thread_does_one_thing_after_the_other():
    async def main(world, cores):
        thread, heard = Thread(cores), []

        async def one(name):
            await thread.run(1.0)
            heard.append((name, world.time()))

        tasks = [asyncio.create_task(one(name)) for name in "abcd"]
        await asyncio.sleep(0.5)
        tasks[2].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return heard

    assert run(main) == [("a", 1.0), ("b", 2.0), ("d", 3.0)]


def test_a_loop_that_waits_for_a_core_leaves_its_steps_alone():
    """One core in slices: the loop has the lock only while it has the core."""
    world = World()
    cores = FairCores(world, (1.0,), 0.0014, 0.004)

    async def main():
        lock, heard = Lock(cores), {}
        held, thread = Held(lock, Runner()), Thread(cores, lock)
        held.begin(0.006, lambda: heard.setdefault("step", world.time()))
        await asyncio.sleep(0.0005)
        loop = asyncio.create_task(thread.run(0.001))
        await asyncio.sleep(0.001)  # it waits for the tick, and the step goes on
        assert cores.num_running == 2
        await loop
        heard["loop"] = world.time()
        await asyncio.sleep(0.1)
        return heard

    try:
        heard = world.run_until_complete(main())
    finally:
        world.close()
    # The step has 4 ms, then the loop its one, then the step the rest.
    assert heard == pytest.approx({"loop": 0.005, "step": 0.007}, abs=1e-5)
