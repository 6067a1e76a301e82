"""kill -9 of instances under load: every request ends, exactly right or with a typed error.

Real processes, real signals. Nothing hangs, nothing leaks, and the pool is whole again.
"""

import asyncio
import contextlib
import os
import random
import signal
from collections import Counter

import pytest

from tests.flow.drawn import parts, picture, words
from tests.flow.harness import Flow, config, flow
from tests.patience import PATIENCE_S
from triptych.core.errors import TriptychError
from triptych.core.request import Picture, Sampling

TOPOLOGY = "E2,P2,D2"
SMALL = ("cache.kv_blocks=512", "cache.embedding_blocks=128", "engine.chunk_tokens=64")
REQUEST_S = PATIENCE_S


async def ask(flow: Flow, rng: random.Random, shared: list[str | Picture]) -> str:
    """One request; its outcome. Tokens that were streamed are right, whatever happened."""
    sampling = Sampling(temperature=rng.choice([0.0, 1.0]), seed=rng.getrandbits(40))
    request = flow.request(
        parts(rng, rng.choice([0, 1, 2]), shared),
        max_tokens=rng.randint(20, 200),
        sampling=sampling,
        seconds=REQUEST_S,
    )
    found: list[int] = []
    try:
        async with (
            asyncio.timeout(REQUEST_S + 1.0),
            contextlib.aclosing(flow.stream(request)) as answer,
        ):
            async for part in answer:
                found += [token.id for token in getattr(part, "tokens", ())]
        outcome = "completed"
    except TriptychError as error:
        outcome = error.code
    except TimeoutError:
        return "hung"
    expected = await flow.oracle_answer(request)
    if found != expected[: len(found)] or (outcome == "completed" and found != expected):
        return "wrong"
    return outcome


async def kill_and_wait(flow: Flow, rng: random.Random, role: str) -> float:
    """SIGKILL one instance of ``role``; seconds until the pool was whole again."""
    view = flow.core.dispatcher.view()
    whole = len(view.instances)
    victims = [v.description for v in view.instances if v.description.id.startswith(role)]
    victim = rng.choice(victims)
    os.kill(victim.pid, signal.SIGKILL)
    start_s = flow.core.clock.now()
    async with asyncio.timeout(PATIENCE_S):
        while True:
            now = flow.core.dispatcher.view().instances
            ids = {v.description.id for v in now}
            if victim.id not in ids and len(now) == whole:
                return flow.core.clock.now() - start_s
            await asyncio.sleep(0.05)


async def storm(settings_backend: str, num_kills: int) -> Counter[str]:
    """Load while instances are killed one after the other; outcomes of all requests."""
    rng = random.Random(f"kills {settings_backend}")
    async with flow(config(TOPOLOGY, *SMALL, backend=settings_backend)) as running:
        shared: list[str | Picture] = [words(rng, 20, 40), picture(rng), words(rng, 10, 20)]
        outcomes: Counter[str] = Counter()
        is_over = asyncio.Event()

        async def client(seed: int) -> None:
            own = random.Random(seed)
            while not is_over.is_set():
                outcomes[await ask(running, own, shared)] += 1

        clients = [asyncio.create_task(client(seed)) for seed in range(6)]
        recoveries = []
        for number in range(num_kills):
            await asyncio.sleep(rng.uniform(0.2, 0.8))
            role = ("decode", "prefill", "encode")[number % 3]
            recoveries.append(await kill_and_wait(running, rng, role))
        is_over.set()
        await asyncio.gather(*clients)
        print(
            f"{num_kills} kills on {settings_backend}: {dict(outcomes)};"
            f" whole again after median {sorted(recoveries)[num_kills // 2]:.1f} s,"
            f" at most {max(recoveries):.1f} s"
        )
    return outcomes


@pytest.mark.slow
async def test_processes() -> None:
    outcomes = await storm("process", 3)
    assert outcomes["hung"] == outcomes["wrong"] == outcomes["internal"] == 0
    assert outcomes["completed"] >= 20


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("num_kills", [1, pytest.param(20, marks=pytest.mark.matrix)])
async def test_ray_actors(num_kills: int) -> None:
    outcomes = await storm("ray", num_kills)
    assert outcomes["hung"] == outcomes["wrong"] == outcomes["internal"] == 0
    assert outcomes["completed"] >= 20
