"""Caches so small that requests come to have each the room that the other waits for.

A lease lasts longer than a request may here, so nobody but the guard ends that: without it, at
least one of these rounds fails, and most times several.
"""

import asyncio
import random

import pytest

from tests.flow.drawn import picture, words
from tests.flow.harness import Flow, config, flow
from triptych.core.request import Request

TIGHT = (
    "transfer.lease_s=1000.0",
    "transfer.guard_s=0.1",
    "cache.kv_blocks=24",
    "cache.embedding_blocks=5",
)
NUM_REQUESTS = 24
NUM_ROUNDS = 5


def draw(rng: random.Random, flow: Flow) -> Request:
    """A request with as many pictures as there may be room for."""
    parts = [part for _ in range(rng.randint(1, 3))
             for part in (words(rng, 1, 8), picture(rng, 28, 112))]  # fmt: skip
    return flow.request([*parts, words(rng)], max_tokens=rng.randint(1, 8), seconds=40.0)


@pytest.mark.parametrize("topology", ["E1,P1,D1", "E2,P2,D2"])
async def test_rooms_that_wait_for_each_other(topology: str) -> None:
    rng = random.Random(f"guard {topology}")
    async with flow(config(topology, *TIGHT)) as running:

        async def one(request: Request, after_s: float) -> None:
            await asyncio.sleep(after_s)
            found = await running.tokens(request)
            assert found == await running.oracle_answer(request)

        for _ in range(NUM_ROUNDS):
            requests = [draw(rng, running) for _ in range(NUM_REQUESTS)]
            await asyncio.gather(*(one(each, rng.random() * 0.05) for each in requests))
            await running.assert_idle()
