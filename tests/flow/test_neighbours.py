"""Requests that want the same place or the same picture at the same time: nobody waits for ever,
nobody pays for a neighbour that leaves, and a long queue is load, not a fault."""

import asyncio
import contextlib
import random

import pytest

from router.answer import Delta, Final
from tests.flow.drawn import picture, words
from tests.flow.harness import Flow, config, flow
from tests.patience import PATIENCE_S
from triptych.core.request import Picture, Request


def square(rng: random.Random, side: int = 224) -> Picture:
    """A picture of 64 visual tokens, or of (side / 28) ** 2."""
    return picture(rng, side, side)


async def answer(flow: Flow, request: Request) -> int:
    """Check the tokens; the number of attempts that they took."""
    found, attempts = [], 0
    async with asyncio.timeout(PATIENCE_S):
        async for part in flow.stream(request):
            match part:
                case Delta():
                    found += [token.id for token in part.tokens]
                case Final():
                    attempts = part.timeline.attempts
    assert found == await flow.oracle_answer(request)
    return attempts


@pytest.mark.parametrize("placement", ["least_loaded", "round_robin"])
@pytest.mark.parametrize("topology", ["EP2,D1", "EPD2", "EP1,E1,P1,D1"])
async def test_pictures_of_two_requests_that_fill_the_cache(topology: str, placement: str) -> None:
    """Each cache holds the pictures of one request. Instances that encoded for each other would
    hold all room for their own prompts and wait for room at the other."""
    rng = random.Random(topology)
    settings = config(
        topology,
        "cache.embedding_blocks=8",  # 64 tokens are 4 blocks
        "transfer.lease_s=1000",
        "transfer.guard_s=60",  # nobody is rescued from a deadlock, nor revoked on a slow machine
        f'router.placement="{placement}"',
    )
    async with flow(settings) as running:
        requests = [
            running.request([square(rng), square(rng), words(rng)], max_tokens=3) for _ in range(6)
        ]
        attempts = await asyncio.gather(*(answer(running, request) for request in requests))
        assert attempts == [1] * 6


@pytest.mark.parametrize("topology", ["E1,P1,D1", "E1,PD1"])
async def test_who_leaves_takes_no_shared_picture_along(topology: str) -> None:
    """The first request's transfer of the picture ends with it, at any moment; the second's own
    promise is fetched instead, and no attempt is lost."""
    rng = random.Random(topology)
    async with flow(config(topology, "transfer.guard_s=60")) as running:
        await answer(running, running.request(["warm ", square(rng)], max_tokens=2))
        for moment_s in (0.005, 0.01, 0.02, 0.03, 0.05):
            shared = square(rng, 840)

            async def leave(picture: Picture = shared, after_s: float = moment_s) -> None:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(after_s):
                        await running.tokens(running.request([picture], max_tokens=900))

            leaving = asyncio.create_task(leave())
            await asyncio.sleep(0.002)
            assert await answer(running, running.request(["y ", shared], max_tokens=4)) == 1
            await leaving


async def test_a_long_queue_for_decode_is_no_fault() -> None:
    """Most prompts wait longer for their turn to decode than their KV is kept: they are prefilled
    again, as often as it takes, and no instance is blamed."""
    settings = config(
        "E1,P1,D1", "engine.max_sequences=1", "transfer.lease_s=0.2", "router.max_attempts=1"
    )
    async with flow(settings) as running:
        requests = [running.request([f"{n} " * 20], max_tokens=900) for n in range(6)]
        attempts = await asyncio.gather(*(answer(running, request) for request in requests))
        assert max(attempts) > 1, "the leases were long enough: nothing was tested"
