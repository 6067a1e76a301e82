"""Two requests, each with the room that the other waits for: one is revoked, and soon.

One has its place where the pictures (or KV) are to go and waits for them; the other has the place
where they are to be made, and waits for the first one's.
"""

import asyncio

import pytest

from cluster.build import start_cluster
from tests.patience import PATIENCE_S
from tests.services.driver import Question, driving, idle, rng_of
from tests.services.test_topologies import config
from triptych.core.errors import Preempted
from triptych.core.event import Encoded, Finished
from triptych.core.handoff import EncodeJob, LanguageJob

LONG = ("transfer.lease_s=100.0", "transfer.guard_s=0.2")
"""Without the guard nothing would end before its deadline."""


async def until(queue, kind, number):
    """Wait for so many events of a kind, and put all back that came."""
    seen = []
    while sum(isinstance(event, kind) for event in seen) < number:
        seen.append(await queue.get())
    for event in seen:
        queue.put_nowait(event)


async def resolve(driver, questions, is_making, kind, number):
    """Send one request's makers first and the other's takers, then the rest; what comes of each.
    ``kind``, ``number``: the events that tell that the first one's are made."""
    early, late = (driver.plan(question) for question in questions)

    def part(jobs, wanted):
        return [(name, job) for name, job in jobs if is_making(job) == wanted]

    async with driver.expecting(early) as first, driver.expecting(late) as second:
        await driver.send(part(early, True))
        await until(first, kind, number)
        await driver.send(part(late, False))
        await asyncio.sleep(0.1)  # its takers are there
        await driver.send(part(early, False))
        await driver.send(part(late, True))
        both = asyncio.gather(
            driver.hear(early, first), driver.hear(late, second), return_exceptions=True
        )
        async with asyncio.timeout(PATIENCE_S):
            return await both


def blocks(question, size=16):
    return sum(-(-item.num_tokens // size) for item in question.prompt.items)


@pytest.mark.usefixtures("no_leak")
async def test_pictures_that_wait_for_each_other():
    rng = rng_of("pictures")
    early = Question(rng, 2, max_tokens=5)
    late = Question(rng, 2, max_tokens=5)
    while blocks(late) != blocks(early):
        late = Question(rng, 2, max_tokens=5)
    settings = config("E1,P1,D1", "auto", f"cache.embedding_blocks={blocks(early)}", *LONG)
    async with await start_cluster(settings) as cluster, driving(cluster) as driver:
        revoked, answer = await resolve(
            driver, (early, late), lambda job: isinstance(job, EncodeJob), Encoded, 2
        )
        assert isinstance(revoked, Preempted)
        assert answer == late.answer()
        assert await driver.ask(early) == early.answer()
        await idle(cluster)


@pytest.mark.usefixtures("no_leak")
async def test_prompts_that_wait_for_each_other():
    rng = rng_of("prompts")
    early, late = (Question(rng, 0, num_words=60, max_tokens=5) for _ in range(2))
    for question in (early, late):
        tokens = tuple(rng.randrange(256) for _ in range(50))
        question.prompt = type(question.prompt)(tokens)
    settings = config("E1,P1,D1", "auto", *LONG, "cache.kv_blocks=5")
    async with await start_cluster(settings) as cluster, driving(cluster) as driver:
        revoked, answer = await resolve(driver, (early, late), _prefills, Finished, 1)
        assert isinstance(revoked, Preempted)
        assert answer == late.answer()
        assert await driver.ask(early) == early.answer()
        await idle(cluster)


def _prefills(job):
    return isinstance(job, LanguageJob) and job.publish is not None
