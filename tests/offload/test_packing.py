"""How blocks lie in slots: exactly, or within the error that a format states."""

import asyncio

import numpy as np
import pytest

from tests.kvtransfer.stores import Store
from triptych.core.clock import MonotonicClock
from triptych.core.config import CacheConfig
from triptych.core.errors import ConfigError
from triptych.core.hashing import digest
from triptych.core.ids import BlockId
from triptych.core.layout import Layout
from triptych.offload.build import Below, build_mover
from triptych.offload.packing import packing

LAYOUTS = (
    Layout("kv", "m", "float32", (3, 2, 5, 1, 24), 5),
    Layout("kv", "m", "float32", (2, 2, 4, 2, 8), 4, 2),
    Layout("embedding", "m", "float32", (7, 52), 7),
)
STEPS = {"int8": 1 / 127, "fp8": 1 / 16}
"""The most that a number may be off, as a part of the greatest of its row."""


def numbers(layout):
    rng = np.random.default_rng(len(layout.shape))
    return rng.standard_normal(layout.block_bytes // 4).astype(np.float32)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.fingerprint[:6])
@pytest.mark.parametrize("name", STEPS)
def test_a_quantised_block_is_smaller_and_nearly_the_same(name, layout):
    form, block = packing(name, layout), numbers(layout)
    slot, back = bytearray(form.packed_bytes + 9), np.empty_like(block)
    form.pack(memoryview(block).cast("B"), memoryview(slot))
    form.unpack(memoryview(slot), memoryview(back).cast("B"))
    assert form.packed_bytes < 0.5 * layout.block_bytes
    assert bytes(slot[form.packed_bytes :]) == bytes(9)
    assert 0 < np.abs(back - block).max() <= STEPS[name] * np.abs(block).max()


@pytest.mark.parametrize("name", STEPS)
def test_bytes_are_not_numbers(name):
    with pytest.raises(ConfigError, match=r"cache\.at_rest"):
        packing(name, Layout("kv", "m", "uint8", (2, 2, 4, 1, 8), 4))


@pytest.mark.parametrize("name", STEPS)
async def test_more_blocks_fit_the_same_memory(name):
    layout = Layout("kv", "m", "float32", (4, 2, 16, 4, 64), 16)
    cache = CacheConfig(host_bytes=3 * layout.block_bytes, at_rest=name)
    soon = asyncio.get_running_loop().call_soon_threadsafe
    store = Store(8, layout)
    mover = build_mover(Below("p", cache, b"s", MonotonicClock(), soon), store, 1.0)
    try:
        keys = [digest("t", bytes([at])) for at in range(8)]
        written = [numbers(layout) * (at + 1) for at in range(8)]
        for at, key in enumerate(keys):
            store.block(at)[:] = written[at].tobytes()
            mover.stored(key, (BlockId(at),))
            mover.evicted(key, (BlockId(at),))
            store.block(at)[:] = bytes(layout.block_bytes)
        assert mover.covered(keys) == 8, "raw ones would be 3"
        assert await mover.fill([(key, (BlockId(at),)) for at, key in enumerate(keys)]) == 8
        for at, block in enumerate(written):
            back = np.frombuffer(store.block(at), np.float32)
            assert np.abs(back - block).max() <= STEPS[name] * np.abs(block).max()
    finally:
        await mover.close()
        store.close()
