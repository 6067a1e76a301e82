"""Embeddings out of a tier: who writes the entry, and what others see meanwhile."""

import asyncio
import contextlib

import pytest

from encoder_service.recall import Recall
from triptych.cache.embeddings import EmbeddingCache
from triptych.core.clock import MonotonicClock
from triptych.core.ids import ContentHash
from triptych.core.request import Item

KEY = ContentHash(b"k" * 32)
ITEM = Item(KEY, 0, 7, (1, 2, 2))


class Tier:
    """Has one key; ``gate`` holds its fills."""

    def __init__(self, is_good=True):
        self.is_good, self.has, self.filled = is_good, True, []
        self.gate = asyncio.Event()
        self.gate.set()

    def covered(self, keys):
        return int(self.has and keys == [KEY])

    async def fill(self, entries):
        await self.gate.wait()
        self.filled += entries
        return int(self.is_good)


class Rig:
    def __init__(self, num_blocks=4, must_wait=False, **tier):
        self.cache = EmbeddingCache(num_blocks, 4)
        self.tier = Tier(**tier)
        self.clock = MonotonicClock()
        self.waits = must_wait
        self.recall = Recall(self.cache, self.tier, self.clock, lambda: self.waits)
        self.cache.watch_room(self.recall.wake)

    def bring(self, seconds=20.0):
        return self.recall.bring(ITEM, "job", self.clock.now() + seconds)

    def assert_idle(self):
        self.cache.check()
        assert self.cache.holdings() == []


async def test_what_a_tier_has_is_in_the_cache_while_the_context_lasts():
    rig = Rig()
    async with rig.bring() as is_here:
        assert is_here
        held = rig.cache.acquire(KEY)
        assert held.is_ready and [(KEY, held.blocks)] == rig.tier.filled
        rig.cache.release(held)
    rig.assert_idle()
    async with rig.bring() as is_here:
        assert is_here and len(rig.tier.filled) == 1
    rig.assert_idle()


@pytest.mark.parametrize("why", ["absent", "no tiers", "too large", "damaged", "late"])
async def test_otherwise_the_picture_is_encoded(why: str):
    rig = Rig(num_blocks=1 if why == "too large" else 2, is_good=why != "damaged")
    rig.tier.has = why != "absent"
    held = None
    if why == "no tiers":
        rig.recall = Recall(rig.cache, None, rig.clock)
    if why == "late":
        held = rig.cache.reserve_all([(ContentHash(b"o" * 32), 8)])[0]
    async with rig.bring(0.05) as is_here:
        assert not is_here
    assert rig.cache.acquire(KEY) is None
    if held is not None:
        rig.cache.release(held)
    rig.assert_idle()


async def test_it_waits_for_room_and_for_those_who_come_first():
    rig = Rig(num_blocks=2, must_wait=True)
    held = rig.cache.reserve_all([(ContentHash(b"o" * 32), 8)])[0]

    async def use():
        async with rig.bring() as is_here:
            return is_here

    task = asyncio.create_task(use())
    await asyncio.sleep(0.01)
    rig.cache.release(held)
    await asyncio.sleep(0.01)
    assert not task.done() and not rig.tier.filled
    rig.waits = False
    rig.recall.wake()
    assert await task
    rig.assert_idle()


async def test_an_entry_with_a_place_is_filled_whoever_waits():
    rig = Rig(num_blocks=2, must_wait=True)
    held = rig.cache.reserve_all([(KEY, 7)])[0]
    rig.cache.entrust(held)
    async with rig.bring() as is_here:
        assert is_here and held.is_ready
    rig.cache.release(held)
    rig.assert_idle()


async def test_another_writer_is_not_disturbed():
    rig = Rig()
    held = rig.cache.reserve_all([(KEY, 7)])[0]
    async with rig.bring() as is_here:
        assert is_here and not rig.tier.filled and held.is_new
    rig.cache.commit(held)
    rig.cache.release(held)
    rig.assert_idle()


async def test_cancelled_while_it_fills():
    rig = Rig()
    rig.tier.gate.clear()

    async def use():
        async with rig.bring():
            pass

    task = asyncio.create_task(use())
    await asyncio.sleep(0)
    other = rig.cache.acquire(KEY)
    assert not other.is_unwritten
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert other.is_unwritten  # whoever waits may write it
    rig.cache.release(other)
    rig.assert_idle()
