"""Cores in virtual time: who runs with how many others ends exactly when a hand computes it."""

import asyncio
import random
from functools import partial

import pytest

from simulator.cores import Cores
from simulator.world import Takes, World

TWO = (1.0, 2.0)


def run(main, speeds=TWO):
    world = World()
    try:
        return world.run_until_complete(main(world, Cores(world, speeds)))
    finally:
        world.close()


def ends_of(jobs, speeds=TWO):
    """When jobs ``(begin_s, work_s)`` end, in the order of ``jobs``."""

    async def main(world, cores):
        async def one(begin_s, work_s):
            await asyncio.sleep(begin_s)
            await cores.run(work_s)
            return world.time()

        found = await asyncio.gather(*(one(*job) for job in jobs))
        assert cores.num_running == 0
        assert cores.work_s == pytest.approx(sum(work_s for _, work_s in jobs))
        return found

    return run(main, speeds)


@pytest.mark.parametrize(
    ("jobs", "ends"),
    [
        ([(0, 1)], [1]),
        ([(0, 1), (0, 1)], [1, 1]),
        ([(0, 1), (0, 1), (0, 1)], [1.5, 1.5, 1.5]),
        # Three from 0 on at 2/3 each: the short one ends at 0.75, then two have a core each.
        ([(0, 0.5), (0, 1), (0, 2)], [0.75, 1.25, 2.25]),
        # Two run alone until 1, then three at 2/3 each until the first two end at 2.5, then one.
        ([(0, 2), (0, 2), (1, 2)], [2.5, 2.5, 3.5]),
        # The one in flight is stretched by two that begin, and no more once they are over.
        ([(0, 3), (1, 1), (1, 1)], [3.5, 2.5, 2.5]),
    ],
)
def test_two_cores_are_shared_equally(jobs, ends):
    assert ends_of(jobs) == pytest.approx(ends, abs=1e-12)


def test_cores_that_disturb_each_other_do_less_in_all():
    assert ends_of([(0, 1), (0, 1)], (1.0, 1.6)) == pytest.approx([1.25, 1.25])
    assert ends_of([(0, 1)] * 4, (1.0, 1.6)) == pytest.approx([2.5] * 4)


def test_without_speeds_everybody_has_a_core():
    jobs = [(index / 7, 1 + index) for index in range(20)]
    expected = [begin_s + work_s for begin_s, work_s in jobs]
    assert ends_of(jobs, ()) == pytest.approx(expected)


def drawn(seed, count=300):
    source = random.Random(seed)
    return [(source.random() * 20, source.expovariate(4.0)) for _ in range(count)]


@pytest.mark.parametrize("seed", range(3))
def test_work_is_conserved_and_runs_are_equal(seed):
    jobs = drawn(seed)
    ends = ends_of(jobs)
    assert ends == ends_of(jobs)
    # Two cores are never idle while two jobs are there: the last end is at least what they need.
    assert max(ends) >= sum(work_s for _, work_s in jobs) / 2
    for (begin_s, work_s), end_s in zip(jobs, ends, strict=True):
        assert end_s >= begin_s + work_s - 1e-9
    assert ends == pytest.approx(stepped(jobs), abs=1e-6)


def stepped(jobs):
    """The same by brute force: from event to event, all that is left reduced each time."""
    left, ends, now_s = {}, [0.0] * len(jobs), 0.0
    coming = sorted((begin_s, index) for index, (begin_s, _) in enumerate(jobs))
    while coming or left:
        rate = min(1.0, 2 / len(left)) if left else 0.0
        next_s = coming[0][0] if coming else float("inf")
        if left and now_s + min(left.values()) / rate < next_s:
            next_s = now_s + min(left.values()) / rate
        left = {index: each - (next_s - now_s) * rate for index, each in left.items()}
        now_s = next_s
        for index in [index for index, each in left.items() if each <= 1e-12]:
            ends[index] = now_s
            del left[index]
        while coming and coming[0][0] <= now_s:
            index = coming.pop(0)[1]
            left[index] = jobs[index][1]
    return ends


def test_a_job_that_is_cancelled_leaves_its_core_at_once():
    async def main(world, cores):
        others = [asyncio.create_task(cores.run(2.0)) for _ in range(2)]
        third = asyncio.create_task(cores.run(2.0))
        await asyncio.sleep(1.5)
        third.cancel()
        await asyncio.gather(*others)
        return world.time()

    assert run(main) == pytest.approx(2.5)


def test_a_job_that_is_paused_stands_still_and_leaves_its_core():
    async def main(world, cores):
        heard = {}

        def mark(name):
            return lambda: heard.setdefault(name, world.time())

        first = cores.begin(1.0, mark("first"))
        cores.at(first, 0.75, mark("on the way"))
        cores.begin(2.0, mark("second"))
        cores.begin(2.0, mark("third"))
        await asyncio.sleep(0.75)  # half a second of work each
        cores.pause(first)
        assert cores.num_running == 2
        await asyncio.sleep(0.5)
        cores.resume(first)  # with one second left of each of the others
        await asyncio.sleep(9.0)
        return heard, cores.num_running

    heard, left = run(main)
    assert heard == pytest.approx({
        "on the way": 0.75 + 0.5 + 0.375, "first": 0.75 + 0.5 + 0.75, "second": 2.5, "third": 2.5,
    })  # fmt: skip
    assert left == 0


def test_points_on_the_way_stretch_with_the_work():
    async def main(world, cores):
        heard = []

        def mark(name):
            return lambda: heard.append((name, world.time()))

        marks = ((0.5, mark("half")), (1.0, mark("whole")))
        takes = Takes(1.0, lambda: takes.seconds, marks, cores, partial(world.call_later, 0.25))
        others = [asyncio.create_task(cores.run(1.0)) for _ in range(2)]
        await asyncio.sleep(0)
        seconds = await world.run_in_executor(None, lambda: takes)
        await asyncio.gather(*others)
        return heard, seconds, world.time()

    heard, seconds, end_s = run(main)
    assert heard == [("half", pytest.approx(0.75)), ("whole", pytest.approx(1.5))]
    assert (seconds, end_s) == (pytest.approx(1.5), pytest.approx(1.75))
