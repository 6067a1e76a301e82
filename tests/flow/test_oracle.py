"""The oracle model through every topology and transport: 2,000 requests, never a wrong token.

Random lengths, shared prefixes, sampling, cancels at random moments and block pools so small that
sequences wait and are preempted. At the end nothing is held anywhere.
"""

import asyncio
import contextlib
import random

import pytest

from tests.flow.drawn import parts, picture, words
from tests.flow.harness import Flow, config, flow
from triptych.core.request import Picture, Request, Sampling
from triptych.inputs.oracle_words import EOS

TOPOLOGIES = (
    "E1,P1,D1", "EP1,D1", "E1,PD1", "ED1,P1", "EPD1", "E2,P2,D2", "EP2,D1", "EPD2"
)  # fmt: skip
TRANSPORTS = ("shm", "tcp")
NUM_REQUESTS = 2000
TIGHT = (
    "cache.kv_blocks=96",
    "cache.embedding_blocks=48",
    "engine.chunk_tokens=48",
    "engine.token_budget=160",
    "engine.max_sequences=12",
    "engine.max_waiting=1000",
)


def draw(rng: random.Random, flow: Flow, shared: list[str | Picture]) -> Request:
    """A random request."""
    sampling = Sampling()
    if rng.random() < 0.4:
        sampling = Sampling(
            temperature=rng.choice([0.5, 1.0, 1.7]),
            top_p=rng.choice([1.0, 0.8]),
            top_k=rng.choice([0, 7]),
            repetition_penalty=rng.choice([1.0, 1.3]),
            seed=rng.getrandbits(40),
        )
    return flow.request(
        parts(rng, rng.choice([0, 0, 1, 1, 2, 3]), shared),
        max_tokens=rng.randint(1, 40),
        sampling=sampling,
        eos=(EOS,) if rng.random() < 0.5 else (),
        seconds=250.0,
    )


async def check(flow: Flow, request: Request, cancel_s: float | None) -> str:
    """Run one request, perhaps abandon it; its tokens must be right as far as they go."""
    found: list[int] = []
    try:
        async with asyncio.timeout(cancel_s), contextlib.aclosing(flow.stream(request)) as answer:
            async for part in answer:
                found += [token.id for token in getattr(part, "tokens", ())]
        outcome = "completed"
    except TimeoutError:
        outcome = "cancelled"
    expected = await flow.oracle_answer(request)
    assert found == expected[: len(found)], f"{request.id}: wrong tokens"
    if outcome == "completed":
        assert len(found) == len(expected), f"{request.id}: cut short"
    return outcome


@pytest.mark.slow
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("topology", TOPOLOGIES)
async def test_no_wrong_token(topology: str, transport: str) -> None:
    rng = random.Random(f"{topology} {transport}")
    number = NUM_REQUESTS // (len(TOPOLOGIES) * len(TRANSPORTS))
    settings = config(topology, f'transfer.transport="{transport}"', *TIGHT)
    async with flow(settings) as running:
        shared: list[str | Picture] = [words(rng, 20, 40), picture(rng), words(rng, 10, 20)]
        room = asyncio.Semaphore(24)

        async def one() -> str:
            async with room:
                cancel_s = rng.uniform(0.0, 0.3) if rng.random() < 0.15 else None
                return await check(running, draw(rng, running, shared), cancel_s)

        outcomes = await asyncio.gather(*(one() for _ in range(number)))
        assert len(outcomes) == number
        assert outcomes.count("completed") >= number * 0.7
