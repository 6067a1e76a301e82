"""Cores in virtual time: who runs with how many others ends exactly when a hand computes it."""

import asyncio
import random

import pytest

from simulator.cores import Cores, Free, Lock, Thread
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


def test_a_step_that_is_held_again_and_again_does_its_work_and_no_more():
    """Also while nothing else runs, so that the cores begin to count anew."""

    async def main(world, cores):
        lock, heard = Lock(cores), {}
        lock.begin(1.0, lambda: heard.setdefault("step", world.time()))
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
        thread = Thread(cores, lock)
        lock.begin(2.0, lambda: heard.setdefault("step", world.time()))
        await asyncio.sleep(0.5)
        loop = asyncio.create_task(thread.run(1.0))
        await asyncio.sleep(0.5)
        late = lock.begin(1.0, lambda: heard.setdefault("late", world.time()))
        lock.at(late, 0.5, lambda: heard.setdefault("half", world.time()))
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
        thread, free = Thread(cores, lock), Free(cores, lock)

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


def test_points_on_the_way_stretch_with_the_work():
    async def main(world, cores):
        heard = []

        def mark(name):
            return lambda: heard.append((name, world.time()))

        marks = ((0.5, mark("half")), (1.0, mark("whole")))
        takes = Takes(1.0, lambda: takes.seconds, marks, cores, 0.25)
        others = [asyncio.create_task(cores.run(1.0)) for _ in range(2)]
        await asyncio.sleep(0)
        seconds = await world.run_in_executor(None, lambda: takes)
        await asyncio.gather(*others)
        return heard, seconds, world.time()

    heard, seconds, end_s = run(main)
    assert heard == [("half", pytest.approx(0.75)), ("whole", pytest.approx(1.5))]
    assert (seconds, end_s) == (pytest.approx(1.5), pytest.approx(1.75))


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
