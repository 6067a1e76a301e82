"""Virtual time: what is due next happens next, in the order in which it was asked for."""

import asyncio

import pytest

from simulator import world as worlds
from simulator.world import Takes, World
from triptych.core.errors import InvariantBroken


def run(main, world=None):
    world = world or World()
    try:
        return world.run_until_complete(main)
    finally:
        world.close()


def test_time_jumps_and_nothing_is_waited_for():
    async def main():
        loop = asyncio.get_running_loop()
        await asyncio.sleep(3600.0)
        first = loop.time()
        async with asyncio.timeout(10.0):
            await asyncio.sleep(5.0)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2.5):
                await asyncio.Event().wait()
        return first, loop.time()

    assert run(main()) == (3600.0, 3607.5)


def test_timers_of_one_moment_are_called_in_the_order_of_asking():
    async def main():
        loop, heard = asyncio.get_running_loop(), []
        for number in range(100):
            loop.call_at(1.0 + number % 3, heard.append, (number % 3, number))
        await asyncio.sleep(5.0)
        return heard

    assert run(main()) == sorted((number % 3, number) for number in range(100))


def test_cancelled_timers_are_not_called_and_not_kept(monkeypatch):
    monkeypatch.setattr(worlds, "MAX_CANCELLED", 10)
    world = World()

    async def main():
        heard = []
        for number in range(200):
            world.call_later(1e6 + number, heard.append, number).cancel()
            await asyncio.sleep(0)
        kept = world.call_later(1.0, heard.append, "kept")
        await asyncio.sleep(2.0)
        assert kept.when() == 1.0
        assert len(world._timers) < 20
        return heard

    assert run(main(), world) == ["kept"]


def test_work_takes_its_time_and_can_be_shortened():
    world = World()
    marks = []

    async def main():
        def work():
            return Takes(2.0, lambda: "done", ((0.5, lambda: marks.append(world.time())),))

        assert await world.run_in_executor(None, work) == "done"
        assert world.time() == 2.0
        takes = Takes(9.0, lambda: takes.seconds, ((9.0, lambda: marks.append(world.time())),))
        future = world.run_in_executor(None, lambda: takes)
        world.call_later(1.0, takes.shorten, world, 3.0)
        assert await future == 3.0
        assert world.time() == 5.0
        takes.shorten(world, 1.0)  # it is over: nothing changes
        return marks

    assert run(main(), world) == [0.5, 5.0], "what was still to come is told with the end"


def test_what_takes_no_time_and_what_fails():
    async def main():
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(None, sum, (1, 2)) == 3
        assert await asyncio.to_thread(sum, (3, 4)) == 7
        with pytest.raises(ZeroDivisionError):
            await loop.run_in_executor(None, lambda: 1 // 0)
        return loop.time()

    assert run(main()) == 0.0


def test_a_world_that_stands_still_says_so():
    async def main():
        await asyncio.Event().wait()

    world = World()
    task = world.create_task(main())
    with pytest.raises(InvariantBroken, match="stands still"):
        world.run_until_complete(task)
    task.cancel()
    world.call_soon(world.stop)
    world.run_forever()
    world.close()
