"""Caches far too small, tiers below them: the same tokens, and what was evicted comes back."""

import asyncio
import random
from pathlib import Path

import pytest

from tests.flow.drawn import picture, words
from tests.flow.harness import Flow, config, flow
from triptych.core.request import Picture

pytestmark = pytest.mark.usefixtures("no_leak")

TINY = (
    "cache.block_size=8",
    "cache.kv_blocks=64",
    "cache.embedding_blocks=24",
    "engine.chunk_tokens=48",
    "engine.token_budget=160",
    "engine.max_sequences=6",
)


def below(tmp_path: Path, *, host: int, disk: int = 0) -> list[str]:
    """Settings of tiers of so many bytes."""
    found = [f"cache.host_bytes={host}"]
    if disk:
        found += [f'cache.disk_path="{tmp_path}"', f"cache.disk_bytes={disk}"]
    return found


async def totals(running: Flow) -> dict[str, int]:
    """Sums over all instances."""
    found: dict[str, int] = {}
    for row in await running.census():
        for name, count in row.totals.items():
            found[name] = found.get(name, 0) + count
    return found


@pytest.mark.parametrize("disk", [0, 1 << 21], ids=["host", "disk"])
@pytest.mark.parametrize("topology", ["E1,P1,D1", "EPD1"])
async def test_exact_tokens_under_heavy_eviction(topology: str, disk: int, tmp_path: Path) -> None:
    rng = random.Random(f"{topology} {disk}")
    settings = config(topology, *TINY, *below(tmp_path, host=1 << 20, disk=disk))
    async with flow(settings) as running:
        prompts: list[list[str | Picture]] = []
        for _ in range(8):
            prompts.append([words(rng, 10, 25), picture(rng), words(rng, 10, 25)])
        for _ in range(3):
            rng.shuffle(prompts)
            requests = [running.request(p, max_tokens=6, seconds=120) for p in prompts]
            answers = await asyncio.gather(*map(running.tokens, requests))
            for request, answer in zip(requests, answers, strict=True):
                assert answer == await running.oracle_answer(request)
        print(await totals(running))
