"""The services of all stages in one process: every topology and transport gives the oracle's
tokens, and nothing is held afterwards."""

import asyncio

import pytest

from cluster.build import start_cluster
from tests.patience import CALM
from tests.services.driver import Question, driving, idle, rng_of
from triptych.core.config import load
from triptych.core.request import Prompt

TOPOLOGIES = ("E1,P1,D1", "EP1,D1", "E1,PD1", "ED1,P1", "EPD1", "E2,P1,D2")


def config(topology, transport="auto", *more):
    return load(None, [
        f'cluster.topology="{topology}"', 'cluster.backend="local"', 'model.path="oracle"',
        f'transfer.transport="{transport}"', "cache.kv_blocks=256", "cache.embedding_blocks=128",
        "engine.chunk_tokens=32", "engine.token_budget=96", "cluster.heartbeat_s=0.1", *CALM, *more,
    ], {})  # fmt: skip


@pytest.mark.usefixtures("no_leak")
@pytest.mark.parametrize("transport", ["auto", "shm", "tcp"])
@pytest.mark.parametrize("topology", TOPOLOGIES)
async def test_tokens_are_the_oracles_and_nothing_is_left(topology, transport):
    rng = rng_of(topology, transport)
    questions = [Question(rng, rng.choice([0, 1, 2, 3]), max_tokens=rng.randint(1, 12))
                 for _ in range(7)]  # fmt: skip
    async with await start_cluster(config(topology, transport)) as cluster:
        async with driving(cluster) as driver:
            answers = await asyncio.gather(
                *(driver.ask(question, choose=n) for n, question in enumerate(questions))
            )
            again = await driver.ask(questions[0])
            await idle(cluster)
        assert list(answers) == [question.answer() for question in questions]
        assert again == answers[0]


async def test_a_last_chunk_of_one_token_is_no_decode():
    """It waits for the chunks before it, also when all of them fit into one step."""
    async with await start_cluster(config("EPD1")) as cluster, driving(cluster) as driver:
        rng = rng_of("one token")
        question = Question(rng, 0, max_tokens=3)
        question.prompt = Prompt(tuple(rng.randrange(256) for _ in range(65)))
        assert await driver.ask(question) == question.answer()


async def test_a_request_resumes_with_the_tokens_it_has():
    async with await start_cluster(config("E2,P1,D2")) as cluster, driving(cluster) as driver:
        question = Question(rng_of("resume"), 2, max_tokens=11)
        whole = question.answer()
        for done in (0, 1, 7, 10):
            rest = await driver.ask(question, generated=whole[:done], epoch=done)
            assert rest == whole[done:]
        await idle(cluster)


async def test_equal_pictures_are_encoded_once():
    async with await start_cluster(config("EP1,D1")) as cluster, driving(cluster) as driver:
        question = Question(rng_of("equal"), 1)
        answers = await asyncio.gather(*(driver.ask(question) for _ in range(5)))
        assert set(answers) == {question.answer()}
        held = await idle(cluster)
        blocks = -(-question.prompt.items[0].num_tokens // 16)
        assert held[1].totals["embedding_block.cached"] == blocks
