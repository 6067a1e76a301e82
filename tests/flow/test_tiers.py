"""Caches far too small, tiers below them: the same tokens, and what was evicted comes back."""

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from router.answer import Final
from tests.flow.drawn import parts, picture, words
from tests.flow.harness import Flow, config, flow
from tests.flow.told import told
from triptych.core.request import Picture

pytestmark = pytest.mark.usefixtures("no_leak")

TINY = (
    "cache.block_size=8",
    "cache.kv_blocks=64",
    "cache.embedding_blocks=6",
    "engine.chunk_tokens=48",
    "engine.token_budget=160",
    "engine.max_sequences=6",
)
MIB = 1 << 20
Parts = list[str | Picture]


def below(tmp_path: Path, *, host: int, disk: int = 0) -> list[str]:
    """Settings of tiers of so many bytes."""
    found = [f"cache.host_bytes={host}"]
    if disk:
        found += [f'cache.disk_path="{tmp_path}"', f"cache.disk_bytes={disk}"]
    return found


async def totals(running: Flow) -> dict[str, int]:
    """Sums over all instances, once all is at rest."""
    found: dict[str, int] = {}
    for row in await running.census(within_s=10.0):
        assert row.is_idle
        for name, count in row.totals.items():
            found[name] = found.get(name, 0) + count
    return found


async def ask(running: Flow, prompt: Parts, max_tokens: int = 6) -> Final:
    """The right tokens, or a failed test; the final word."""
    request = running.request(prompt, max_tokens=max_tokens, seconds=120)
    found: list[int] = []
    last = None
    async with contextlib.aclosing(running.stream(request)) as answer:
        async for part in answer:
            found += [token.id for token in getattr(part, "tokens", ())]
            last = part
    assert found == await running.oracle_answer(request)
    assert isinstance(last, Final)
    return last


async def push_out(running: Flow, rng: random.Random) -> None:
    """Other prompts, enough to fill every cache of TINY twice."""
    for _ in range(8):
        await ask(running, [words(rng, 10, 15), picture(rng, 110, 140), words(rng, 20, 25)])


@pytest.mark.parametrize("disk", [0, MIB], ids=["host", "disk"])
@pytest.mark.parametrize("topology", ["E1,P1,D1", "EPD1", "EP1,D1", "E1,PD1"])
async def test_exact_tokens_under_heavy_eviction(topology: str, disk: int, tmp_path: Path) -> None:
    rng = random.Random(f"{topology} {disk}")
    settings = config(topology, *TINY, *below(tmp_path, host=MIB // 2, disk=disk))
    async with flow(settings) as running:
        prompts: list[Parts] = [
            [words(rng, 10, 25), picture(rng), words(rng, 10, 25)] for _ in range(8)
        ]
        for _ in range(3):
            rng.shuffle(prompts)
            await asyncio.gather(*(ask(running, prompt) for prompt in prompts))
        sizes = await totals(running)
        assert sizes["kv_tiers.filled"] > 20 and sizes["kv_tiers.damaged"] == 0


@pytest.mark.parametrize("topology", ["E1,P1,D1", "EPD1"])
async def test_a_prefix_that_was_pushed_out_is_not_computed_again(
    topology: str, tmp_path: Path
) -> None:
    rng = random.Random(topology)
    async with flow(config(topology, *TINY, *below(tmp_path, host=2 * MIB))) as running:
        prompt: Parts = [words(rng, 10, 25), picture(rng), words(rng, 10, 25)]
        first = await ask(running, prompt)
        await push_out(running, rng)
        before = await totals(running)
        second = await ask(running, prompt)
        after = await totals(running)
        length = first.usage.prompt_tokens
        assert second.usage.cached_tokens == (length - 1) // 8 * 8 > first.usage.cached_tokens
        assert after["kv_tiers.filled"] > before["kv_tiers.filled"]


@pytest.mark.parametrize("topology", ["E1,P1,D1", "EPD1", "EP1,D1"])
async def test_a_picture_that_was_pushed_out_is_not_encoded_again(
    topology: str, tmp_path: Path
) -> None:
    rng = random.Random(topology)
    async with flow(config(topology, *TINY, *below(tmp_path, host=2 * MIB))) as running:
        shown = picture(rng, 60, 90)
        first = await ask(running, [words(rng, 10, 15), shown])
        assert first.timeline.encode_s > 0
        await push_out(running, rng)
        before = await totals(running)
        second = await ask(running, [words(rng, 10, 15), shown])  # no KV can be reused
        after = await totals(running)
        assert second.timeline.encode_s == 0
        assert after["embedding_tiers.filled"] > before["embedding_tiers.filled"]


async def test_a_picture_in_a_tier_of_prefill_is_not_sent_to_an_encoder(tmp_path: Path) -> None:
    """The router knows that it is there, and prefill brings it without a promise. If it was lost
    meanwhile, that costs a second try and not a token."""
    rng = random.Random("told")
    async with flow(config("E1,P1,D1", *TINY, *below(tmp_path, host=2 * MIB))) as running:
        shown = picture(rng, 60, 90)
        first = await ask(running, [words(rng, 10, 15), shown])
        assert any("encode" in name for name in first.timeline.route)
        await push_out(running, rng)
        await told(running)
        second = await ask(running, [words(rng, 10, 15), shown])
        assert not any("encode" in name for name in second.timeline.route)
        assert second.usage.cached_tokens == 0


async def test_random_cancels_leave_nothing_behind(tmp_path: Path) -> None:
    rng = random.Random(5)
    settings = config("EP1,D1", *TINY, *below(tmp_path, host=MIB // 2, disk=MIB))
    async with flow(settings) as running:
        shared: Sequence[str | Picture] = [words(rng, 10, 20), picture(rng), words(rng, 5, 10)]
        room = asyncio.Semaphore(10)

        async def one() -> None:
            async with room:
                request = running.request(parts(rng, 1, list(shared)), seconds=120)
                found: list[int] = []
                with contextlib.suppress(TimeoutError):
                    async with (
                        asyncio.timeout(rng.choice([None, rng.uniform(0.0, 0.4)])),
                        contextlib.aclosing(running.stream(request)) as answer,
                    ):
                        async for part in answer:
                            found += [token.id for token in getattr(part, "tokens", ())]
                expected = await running.oracle_answer(request)
                assert found == expected[: len(found)]

        await asyncio.gather(*(one() for _ in range(60)))
        assert (await totals(running))["kv_tiers.damaged"] == 0


async def test_a_restarted_server_finds_its_prefixes_on_the_disk(tmp_path: Path) -> None:
    rng = random.Random(2)
    sizes = below(tmp_path, host=2 * MIB, disk=4 * MIB)  # all fits: none is lost before it is saved
    settings = config("EPD1", *TINY, *sizes, 'cluster.secret="kept"')
    prompts: list[Parts] = [
        [words(rng, 10, 25), picture(rng), words(rng, 10, 25)] for _ in range(3)
    ]
    async with flow(settings) as running:
        for prompt in prompts:
            await ask(running, prompt)
        await push_out(running, rng)
    async with flow(settings) as running:
        for prompt in prompts:
            last = await ask(running, prompt)
            assert last.usage.cached_tokens == (last.usage.prompt_tokens - 1) // 8 * 8


async def test_damage_on_the_disk_is_a_miss_and_never_a_wrong_token(tmp_path: Path) -> None:
    rng = random.Random(3)
    sizes = below(tmp_path, host=2 * MIB, disk=4 * MIB)  # all fits: none is lost before it is saved
    settings = config("EPD1", *TINY, *sizes, 'cluster.secret="kept"')
    prompts: list[Parts] = [
        [words(rng, 10, 25), picture(rng), words(rng, 10, 25)] for _ in range(3)
    ]
    async with flow(settings) as running:
        for prompt in prompts:
            await ask(running, prompt)
        await push_out(running, rng)
    for path in tmp_path.glob("*.tier"):
        data = bytearray(path.read_bytes())
        for at in range(1 << 15, len(data), 3000):  # in every slot, behind the records
            data[at] ^= 0x10
        path.write_bytes(data)
    async with flow(settings) as running:
        for prompt in prompts:
            await ask(running, prompt)
        assert (await totals(running))["kv_tiers.damaged"] >= 3


async def test_a_killed_instance_serves_its_disk_again(tmp_path: Path) -> None:
    rng = random.Random(4)
    settings = config(
        "EPD1", *TINY, *below(tmp_path, host=1 << 18, disk=8 * MIB), backend="process"
    )
    prompts: list[Parts] = [[words(rng, 20, 30), picture(rng)] for _ in range(12)]
    async with flow(settings) as running:
        for prompt in prompts:
            await ask(running, prompt)
        assert (await totals(running))["kv_disk_slot.cached"] > 20
        victim = running.core.dispatcher.view().instances[0].description
        os.kill(victim.pid, signal.SIGKILL)
        answers = await asyncio.gather(*(ask(running, prompt) for prompt in prompts))
        assert sum(answer.usage.cached_tokens for answer in answers) > 0
        sizes = await totals(running)
        assert sizes["kv_tiers.filled"] > 0 and sizes["kv_tiers.damaged"] == 0
