"""Roles with other shapes: encode, prefill and decode instances whose blocks have other sizes.

The oracle's numbers are bytes of which every bit counts, so its tokens are exact whatever the
shapes: half the prompts share beginnings, so hits of the taker end inside the giver's blocks.
"""

import asyncio
import random

import pytest

from tests.flow.drawn import parts, picture, words
from tests.flow.harness import config, flow
from tests.flow.test_oracle import check
from triptych.core.errors import ConfigError
from triptych.core.request import Picture

TIGHT = (
    "engine.chunk_tokens=48",
    "engine.token_budget=160",
    "engine.max_sequences=12",
    "engine.max_waiting=1000",
)
SHAPES = {
    "P 4, D 16": {"P": (4, 400), "D": (16, 90)},
    "P 16, D 4": {"P": (16, 100), "D": (4, 360)},
    "P 7, D 3": {"P": (7, 220), "D": (3, 480)},
}
"""Tokens in a KV block and number of blocks, by role."""


def settings(shapes, transport, *more):
    roles = {
        role: [f"cache.block_size={size}", f"cache.kv_blocks={count}"]
        for role, (size, count) in shapes.items()
    }
    roles["E"] = ["cache.embedding_block_size=5", "cache.embedding_blocks=150"]
    text = ", ".join(f"{role} = {own}" for role, own in roles.items())
    return config(
        "E1,P1,D1", f'transfer.transport="{transport}"', f"cluster.roles={{ {text} }}",
        "cache.embedding_blocks=48", *TIGHT, *more,
    )  # fmt: skip


@pytest.mark.parametrize("transport", ["auto", "shm", "tcp"])
@pytest.mark.parametrize("shape", SHAPES)
async def test_no_wrong_token_between_other_block_sizes(shape: str, transport: str) -> None:
    rng = random.Random(f"{shape} {transport}")
    async with flow(settings(SHAPES[shape], transport)) as running:
        shared: list[str | Picture] = [words(rng, 20, 40), picture(rng), words(rng, 10, 20)]
        room = asyncio.Semaphore(16)

        async def one() -> str:
            async with room:
                asked = running.request(
                    parts(rng, rng.choice([0, 1, 1, 2]), shared),
                    max_tokens=rng.randint(1, 30),
                    seconds=100.0,
                )
                return await check(running, asked, 0.2 if rng.random() < 0.1 else None)

        outcomes = await asyncio.gather(*(one() for _ in range(30)))
        assert outcomes.count("completed") >= 20


@pytest.mark.parametrize("wire", ["int8", "fp8"])
async def test_the_oracle_refuses_to_be_rounded(wire: str) -> None:
    with pytest.raises(ConfigError, match=r"transfer\.wire"):
        async with flow(config("E1,P1,D1", f"transfer.wire={wire}")):
            pass
