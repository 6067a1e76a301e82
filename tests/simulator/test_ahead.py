"""Runs of steps that are told one by one, on cores: times known by hand."""

import asyncio

import pytest

from simulator.ahead import Ahead
from simulator.cores import Cores
from simulator.world import World


def run(main, speeds=(1.0, 2.0)):
    world = World()
    try:
        return world.run_until_complete(main(world, Cores(world, speeds)))
    finally:
        world.close()


def at_once(then):
    then()


class Told:
    """What was heard, and when."""

    def __init__(self, world):
        self.world = world
        self.heard = []

    def __call__(self, index, seconds, *, is_last):
        self.heard.append((index, self.world.time(), seconds, is_last))
        return "the end" if is_last else None


def test_each_step_begins_when_the_one_before_is_over():
    async def main(world, cores):
        told = Told(world)

        def later(then):
            world.call_later(0.5, then)

        ahead = Ahead(3, lambda index: 1.0 + index, told, cores, 0.25, later)
        result = await world.run_in_executor(None, lambda: ahead)
        return told.heard, result, world.time(), cores.work_s

    heard, result, end_s, work_s = run(main)
    assert heard == [(0, 1.0, 1.0, False), (1, 3.25, 2.0, False), (2, 6.5, 3.0, True)]
    assert (result, end_s, work_s) == ("the end", 7.0, 6.0)


@pytest.mark.parametrize(("at_s", "steps"), [(0.5, 1), (1.5, 2), (2.5, 3), (9.0, 5)])
def test_a_run_that_is_interrupted_ends_behind_the_step_in_flight(at_s, steps):
    async def main(world, cores):
        told = Told(world)
        ahead = Ahead(5, lambda _: 1.0, told, cores, 0.0, at_once)
        world.call_later(at_s, ahead.interrupt)
        result = await world.run_in_executor(None, lambda: ahead)
        return told.heard, result, world.time()

    heard, result, end_s = run(main)
    assert [is_last for *_, is_last in heard] == [False] * (steps - 1) + [True]
    assert (result, end_s) == ("the end", steps)


def test_steps_share_the_cores():
    async def main(world, cores):
        told = Told(world)
        others = [asyncio.create_task(cores.run(2.0)) for _ in range(2)]
        await asyncio.sleep(0)
        ahead = Ahead(2, lambda _: 1.0, told, cores, 0.0, at_once)
        await world.run_in_executor(None, lambda: ahead)
        await asyncio.gather(*others)
        return [(index, seconds) for index, _, seconds, _ in told.heard], world.time()

    assert run(main) == ([(0, pytest.approx(1.5)), (1, pytest.approx(1.5))], pytest.approx(3.0))
