"""The whole system in seconds: pictures in, tokens out, through E, P and D in one process.

Runs first. The oracle model's tokens are a hash of every block that was read, so one swapped, stale
or lost block on the way from encode to decode changes them.
"""

import random

import pytest

from tests.flow.drawn import picture
from tests.flow.harness import config, flow

pytestmark = pytest.mark.usefixtures("no_leak")


async def answer(topology: str) -> tuple[list[int], list[int]]:
    """Tokens of one question about two pictures, and what they must be."""
    rng = random.Random(17)
    asked = ["what is ", picture(rng), "left of ", picture(rng), "in the large circle"]
    # Tenants' salts are made of the secret, and the oracle's tokens of the salts.
    async with flow(config(topology, 'cluster.secret="tiny"')) as running:
        request = running.request(asked, max_tokens=17)
        tokens = await running.tokens(request)
        return tokens, list(await running.oracle_answer(request))


async def test_three_instances_give_the_tokens_of_one():
    apart, expected = await answer("E1,P1,D1")
    together, _ = await answer("EPD1")
    assert len(apart) == 17
    assert apart == together == expected
