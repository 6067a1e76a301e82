"""Write-back, promotion, demotion and fills with real memory, threads and files."""

import asyncio
import random
import threading
import time
from pathlib import Path

import pytest

from kvtransfer.prefixes import Place
from tests.kvtransfer.stores import Store
from tests.patience import PATIENCE_S
from triptych.cache.embeddings import EmbeddingCache
from triptych.cache.kv import KvCache
from triptych.cache.watch import TierWatchers
from triptych.core.catalog import Tier
from triptych.core.clock import MonotonicClock
from triptych.core.config import CacheConfig
from triptych.core.errors import ConfigError
from triptych.core.handoff import JobHeader, LanguageJob
from triptych.core.hashing import digest
from triptych.core.ids import BlockId, ContentHash, JobId, SessionId
from triptych.core.layout import Layout
from triptych.core.request import Prompt, Sampling, StopRule
from triptych.offload import mover as mover_module
from triptych.offload.build import Below, build_mover
from triptych.offload.prefixes import TierPrefixes

pytestmark = pytest.mark.usefixtures("no_leak")

LAYOUT = Layout("kv", "m", "float32", (2, 2, 4, 1, 7), 4)
SLOT = 4096
JOB = LanguageJob(
    JobHeader(JobId("j"), SessionId("s"), 0, 1.0, b"salt"), Prompt((1,)), Sampling(), StopRule(4)
)


def key_of(number: int) -> ContentHash:
    return digest("test", number.to_bytes(4, "big"))


def content(key: ContentHash, part: int = 0) -> bytes:
    return random.Random(key + bytes([part])).randbytes(LAYOUT.block_bytes)


class Rig:
    """A store, its tiers, and their watcher."""

    def __init__(self, tmp_path: Path, *, host: int, disk: int = 0, blocks: int = 16):
        self.is_closed = False
        self.store = Store(blocks, LAYOUT)
        path = str(tmp_path) if disk else ""
        cache = CacheConfig(host_bytes=host * SLOT, disk_path=path, disk_bytes=disk)
        soon = asyncio.get_running_loop().call_soon_threadsafe
        below = Below("prefill-0", cache, b"secret", MonotonicClock(), soon)
        self.mover = build_mover(below, self.store, 1.0)
        self.seen: list[tuple[str, Tier, ContentHash]] = []
        self.mover.watchers.add(self)

    def tier_stored(self, tier, key):
        self.seen.append(("stored", tier, key))

    def tier_evicted(self, tier, key):
        self.seen.append(("evicted", tier, key))

    def write(self, key: ContentHash, *blocks: int) -> tuple[BlockId, ...]:
        for part, block in enumerate(blocks):
            self.store.block(block)[:] = content(key, part)
        return tuple(BlockId(block) for block in blocks)

    def store_and_evict(self, number: int, *blocks: int) -> ContentHash:
        key = key_of(number)
        held = self.write(key, *blocks)
        self.mover.stored(key, held)
        self.mover.evicted(key, held)
        for block in blocks:
            self.store.block(block)[:] = bytes(LAYOUT.block_bytes)
        return key

    async def expect(self, key: ContentHash, *blocks: int) -> None:
        assert await self.mover.fill([(key, blocks)]) == 1
        for part, block in enumerate(blocks):
            assert self.store.block(block) == content(key, part)

    def total(self, name: str) -> int:
        return self.mover.census()[1][name]

    async def until(self, name: str, count: int) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while self.total(name) < count:
                await asyncio.sleep(0.002)

    async def close(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            self.mover.check()
            await self.mover.close()
            self.store.close()


@pytest.fixture
async def make(tmp_path: Path):
    """Rigs over one folder; all are closed at the end."""
    made: list[Rig] = []

    def make_one(**sizes: int) -> Rig:
        made.append(Rig(tmp_path, **sizes))
        return made[-1]

    yield make_one
    for rig in made:
        await rig.close()


async def test_evicted_blocks_come_back(make):
    below = make(host=8)
    one, three = below.store_and_evict(1, 5), below.store_and_evict(2, 1, 9, 4)
    assert below.mover.covered([one, three, key_of(3)]) == 2
    await below.expect(one, 0)
    await below.expect(three, 15, 2, 3)
    assert await below.mover.fill([(one, (1,)), (key_of(3), (2,)), (three, (3, 4, 5))]) == 1
    assert await below.mover.fill([(three, (1, 2))]) == 0  # another number of blocks
    await asyncio.sleep(0)
    assert below.seen == [("stored", Tier.HOST, one), ("stored", Tier.HOST, three)]
    await below.close()
    assert await below.mover.fill([(one, (1,))]) == 0
    below.mover.stored(one, (BlockId(1),))
    below.mover.evicted(one, (BlockId(1),))


async def test_stored_blocks_are_copied_in_the_background(make):
    below = make(host=8)
    for number in range(5):
        below.mover.stored(key_of(number), below.write(key_of(number), number))
    await below.until("kv_tiers.copied", 5)
    for number in range(5):
        await below.expect(key_of(number), 10)


async def test_a_copy_that_fails_costs_its_entry_and_no_other(make, monkeypatch):
    below = make(host=8)
    stage, failing = below.store.stage, [True]

    def broken(*what):
        if failing:
            failing.pop()
            raise RuntimeError("the device says no")
        return stage(*what)

    monkeypatch.setattr(below.store, "stage", broken)
    for number in range(3):
        below.mover.stored(key_of(number), below.write(key_of(number), number))
    await below.until("kv_tiers.copied", 2)
    assert below.total("kv_tiers.failed") == 1
    assert below.mover.covered([key_of(0)]) == 0
    for number in (1, 2):
        await below.expect(key_of(number), 10)


async def test_what_leaves_the_host_is_on_the_disk(make):
    below = make(host=4, disk=64 * SLOT)
    keys = []
    for number in range(20):
        keys.append(below.store_and_evict(number, number % 16))
        await below.until("kv_tiers.demoted", number - 2)
    places = [below.mover.covered([key]) for key in keys]
    assert sum(places) == 20 and below.total("kv_tiers.lost") == 0
    for key in keys:
        await below.expect(key, 3)
    on_disk = below.mover.keys(Tier.DISK)
    assert len(on_disk) >= 16 and len(below.mover.keys(Tier.HOST)) <= 4


async def test_a_waiting_prompt_finds_its_blocks_in_the_host(make):
    below = make(host=4, disk=64 * SLOT)
    for number in range(12):
        below.store_and_evict(number, 0)
        await below.until("kv_tiers.demoted", number - 2)
    cold = [key_of(0), key_of(1)]
    assert not set(cold) & set(below.mover.keys(Tier.HOST))
    below.mover.foresee([*cold, key_of(99)])
    await below.until("kv_tiers.prefetched", 2)
    assert set(cold) <= set(below.mover.keys(Tier.HOST))
    await below.expect(cold[0], 1)


async def test_a_restart_finds_what_was_saved_and_nothing_after_a_change(make, tmp_path: Path):
    below = make(host=6, disk=64 * SLOT)
    keys = [below.store_and_evict(number, number, number + 1) for number in range(3)]
    await below.close()
    again = make(host=6, disk=64 * SLOT)
    assert again.mover.keys(Tier.HOST) == [] and again.mover.covered(keys) == 3
    for key in keys:
        await again.expect(key, 7, 2)
    await again.close()
    (tmp_path / "prefill-0.kv.tier").write_bytes(b"nonsense")
    fresh = make(host=6, disk=64 * SLOT)
    assert fresh.mover.covered(keys) == 0


async def test_damage_on_the_disk_is_a_miss_and_forgotten(make, tmp_path: Path):
    below = make(host=6, disk=64 * SLOT)
    keys = [below.store_and_evict(number, number) for number in range(3)]
    await below.close()
    path = tmp_path / "prefill-0.kv.tier"
    data = bytearray(path.read_bytes())
    at = data.index(content(keys[1])[:64])
    data[at + 5] ^= 1
    path.write_bytes(data)
    again = make(host=6, disk=64 * SLOT)
    assert again.mover.covered(keys) == 3
    assert await again.mover.fill([(key, (at,)) for at, key in enumerate(keys)]) == 1
    assert again.mover.covered([keys[1]]) == 0 and again.total("kv_tiers.damaged") == 1
    again.mover.foresee([keys[2]])
    await again.until("kv_tiers.prefetched", 1)
    await again.expect(keys[2], 9)


async def test_a_full_queue_drops_and_eviction_makes_good_for_it(
    make, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(mover_module, "MAX_QUEUED", 2)
    below = make(host=16)
    gate = Gate(below)
    held = {}
    for number in range(8):
        held[key_of(number)] = below.write(key_of(number), number)
        below.mover.stored(key_of(number), held[key_of(number)])
        if number == 0:
            await asyncio.to_thread(gate.reached.wait, 20)
    assert below.total("kv_tiers.dropped") == 5
    gate.open.set()
    for key, blocks in held.items():
        below.mover.evicted(key, blocks)
        below.store.block(blocks[0])[:] = bytes(LAYOUT.block_bytes)
    for number in range(8):
        await below.expect(key_of(number), 12)


class Gate:
    """Holds whoever copies out of the store for the first time."""

    def __init__(self, below: Rig):
        self.reached, self.open = threading.Event(), threading.Event()
        below.store.stage = self.stage  # what a GPU's store does there takes time, too

    def stage(self, blocks) -> None:
        self.reached.set()
        assert self.open.wait(20)


async def test_eviction_waits_for_a_copy_under_way(make):
    below = make(host=8)
    gate = Gate(below)
    blocks = below.write(key_of(1), 3)
    below.mover.stored(key_of(1), blocks)
    await asyncio.to_thread(gate.reached.wait, 20)
    done = threading.Event()

    def evict() -> None:
        below.mover.evicted(key_of(1), blocks)
        done.set()

    thread = threading.Thread(target=evict)
    thread.start()
    assert not done.wait(0.1)  # the block may not be reused: somebody reads it
    gate.open.set()
    assert await asyncio.to_thread(done.wait, 20)
    thread.join()
    below.store.block(3)[:] = bytes(LAYOUT.block_bytes)
    await below.expect(key_of(1), 6)


async def test_no_copy_is_ever_torn(make):
    """Blocks are rewritten the moment that the cache lets them go; what the tiers have of a key is
    that key's bytes, however the threads fall."""
    rng = random.Random(11)
    below = make(host=9, disk=40 * SLOT, blocks=6)
    on_device: dict[int, ContentHash] = {}
    num_filled = 0
    for step in range(1500):
        block = rng.randrange(5)
        if block in on_device:
            below.mover.evicted(on_device.pop(block), (BlockId(block),))
        key = key_of(rng.randrange(40))
        if key in on_device.values():
            continue
        if below.mover.covered([key]) and rng.random() < 0.5:
            if await below.mover.fill([(key, (5,))]):
                assert below.store.block(5) == content(key), step
                num_filled += 1
            below.store.block(5)[:] = bytes(LAYOUT.block_bytes)
        if rng.random() < 0.2:
            below.mover.foresee([key_of(rng.randrange(40)) for _ in range(3)])
        below.write(key, block)
        on_device[block] = key
        below.mover.stored(key, (BlockId(block),))
        if step % 50 == 0:
            await asyncio.sleep(0)
            below.mover.check()
    assert num_filled > 50 and below.total("kv_tiers.demoted") > 10
    assert below.total("kv_tiers.damaged") == 0


async def test_a_cancelled_fill_writes_no_more(make):
    below = make(host=16)
    keys = [below.store_and_evict(number, number) for number in range(8)]
    absorbing, release = threading.Event(), threading.Event()

    def absorb(blocks) -> None:
        absorbing.set()
        assert release.wait(20)

    below.store.absorb = absorb
    task = asyncio.create_task(below.mover.fill([(key, (at,)) for at, key in enumerate(keys)]))
    await asyncio.to_thread(absorbing.wait, 20)
    assert [row.count for row in below.mover.census()[0]] == [1]
    task.cancel()
    await asyncio.sleep(0.05)
    assert not task.done()  # the thread still has the blocks
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert below.mover.census()[0] == []


async def test_a_disk_that_refuses_is_not_written_again(make):
    below = make(host=3, disk=20 * SLOT)

    def refuse(*_):
        raise OSError(28, "No space left on device")

    below.mover._tiers._disk.write = refuse
    for number in range(9):
        below.store_and_evict(number, number)
    time.sleep(0.05)
    assert below.mover.keys(Tier.DISK) == [] and below.total("kv_tiers.lost") == 6
    await below.expect(key_of(8), 0)


@pytest.mark.parametrize("host", [0, 1])
async def test_budgets_too_small_are_named(tmp_path: Path, host: int):
    cache = CacheConfig(host_bytes=host * (SLOT - 1))
    below = Below("x", cache, b"secret", MonotonicClock(), asyncio.get_running_loop().call_soon)
    store = Store(4, LAYOUT)
    with pytest.raises(ConfigError, match="cache.host_bytes"):
        build_mover(below, store, 1.0)
    store.close()


async def test_a_prefix_of_a_sequence_is_found_and_brought(make):
    below = make(host=16, blocks=8)
    cache = KvCache(8, 4, "m")
    cache.watchers.add(below.mover)
    source = TierPrefixes(cache, below.mover)
    tokens = list(range(22))
    table = cache.table(JobId("a"), b"salt", tokens)
    assert source.num_tokens(JOB, table) == 0
    assert cache.open(table, 22, limit=21)
    for block, key in zip(table.blocks, cache.keys(table, 22), strict=False):
        below.write(key, block)
    cache.commit(table, 22)
    cache.release(table)
    other = cache.table(JobId("b"), b"salt", [99] * 28)
    assert cache.open(other, 28, limit=27)
    cache.release(other)
    again = cache.table(JobId("c"), b"salt", tokens)
    assert cache.open(again, 22, limit=21)
    first = again.hit_tokens // 4
    assert source.num_tokens(JOB, again) == 20 and first <= 1
    place = Place(again.blocks, again.hit_tokens, 20)
    assert await source.bring(JOB, place, 0.0) == 20
    assert await source.bring(JOB, place, 0.0) == again.hit_tokens  # nothing is kept of it
    for block, key in zip(again.blocks[first:5], cache.keys(again, 20)[first:], strict=True):
        assert below.store.block(block) == content(key)
    salted = cache.table(JobId("d"), b"other tenant", tokens)
    assert source.num_tokens(JOB, salted) == 0
    assert source.num_tokens(JOB, again) == 20
    assert await source.bring(JOB, place._replace(start=20, end=28), 0.0) == 20  # behind a gap
    assert source.num_tokens(JOB, again) == 20
    source.forget(JOB.header.id)
    assert await source.bring(JOB, place, 0.0) == again.hit_tokens
    cache.release(again)


async def test_embeddings_of_several_blocks(make):
    below = make(host=16, blocks=6)
    cache = EmbeddingCache(6, 4)
    cache.watchers.add(below.mover)
    entry = cache.reserve_all([(key_of(1), 10)])[0]
    below.write(key_of(1), *entry.blocks)
    cache.commit(entry)
    cache.release(entry)
    other = cache.reserve_all([(key_of(2), 24)])[0]
    cache.release(other)
    back = cache.reserve_all([(key_of(1), 10)])[0]
    await below.expect(key_of(1), *back.blocks)
    cache.commit(back)
    cache.release(back)


def test_watchers_hear_both_ways():
    heard = []

    class Ear:
        def tier_stored(self, tier, key):
            heard.append((tier, key, True))

        def tier_evicted(self, tier, key):
            heard.append((tier, key, False))

    watchers = TierWatchers()
    watchers.add(Ear())
    watchers.changed(Tier.DISK, key_of(1), True)
    watchers.changed(Tier.HOST, key_of(1), False)
    assert heard == [(Tier.DISK, key_of(1), True), (Tier.HOST, key_of(1), False)]
