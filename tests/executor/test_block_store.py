import gc
import mmap
import os

import pytest
import torch

from triptych.core.errors import ConfigError
from triptych.core.layout import Layout
from triptych.executor.block_store import DTYPES, BlockStore


def store(dtype: str = "float32", shape: tuple[int, ...] = (3, 5), num_blocks: int = 7):
    return BlockStore(Layout("kv", "tiny", dtype, shape, shape[0]), num_blocks)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_view_is_the_tensor(dtype: str):
    blocks = store(dtype)
    size = blocks.layout.block_bytes
    assert blocks.tensor.shape == (7, 3, 5)
    assert blocks.view.nbytes == blocks.num_bytes == 7 * size
    assert not blocks.tensor.any()
    blocks.tensor[4] = 3
    raw = blocks.view[4 * size : 5 * size]
    assert torch.frombuffer(raw, dtype=DTYPES[dtype]).tolist() == [3] * 15
    blocks.view[:size] = bytes(raw)
    assert (blocks.tensor[0] == 3).all()
    assert not blocks.tensor[1:4].any()
    blocks.close()


def test_a_peer_may_map_the_descriptor_and_nobody_may_resize_it():
    blocks = store()
    blocks.tensor[6] = 1.5
    size = blocks.layout.block_bytes
    with mmap.mmap(blocks.fd, blocks.num_bytes, prot=mmap.PROT_READ) as peer:
        assert torch.frombuffer(bytearray(peer[6 * size :]), dtype=torch.float32).eq(1.5).all()
    for num_bytes in (1, 2 * blocks.num_bytes):
        with pytest.raises(PermissionError):
            os.ftruncate(blocks.fd, num_bytes)
    blocks.close()


def test_close_gives_everything_back(no_leak: None):
    gc.collect()  # what other tests left
    before = _mapped()
    for _ in range(20):
        blocks = store(shape=(16, 64), num_blocks=50)
        blocks.tensor[1] = 1
        blocks.close()
        blocks.close()
        assert blocks.fd == -1
    gc.collect()
    assert _mapped() <= before


def test_a_tensor_outlives_its_store():
    blocks = store()
    kept = blocks.tensor
    kept[0] = 2
    blocks.close()
    gc.collect()
    assert kept[0].eq(2).all()


def test_staging_is_nothing_on_a_cpu():
    blocks = store()
    blocks.view[:4] = b"\x00\x00\x80\x3f"
    blocks.stage([0, 1])
    blocks.absorb([0, 1])
    assert blocks.tensor[0, 0, 0] == 1
    blocks.close()


def test_no_room():
    layout = Layout("kv", "tiny", "float32", (1024, 1024), 1024)
    with pytest.raises(ConfigError, match=r"cache\.kv_blocks"):
        BlockStore(layout, 2**30, setting="cache.kv_blocks")


@pytest.mark.gpu
def test_a_gpu_store_is_staged():
    layout = Layout("kv", "tiny", "bfloat16", (3, 5), 3)
    blocks = BlockStore(layout, 4, device="cuda")
    blocks.tensor[2] = 3
    assert not any(blocks.view)
    blocks.stage([2])
    size = layout.block_bytes
    blocks.view[:size] = bytes(blocks.view[2 * size : 3 * size])
    blocks.absorb([0])
    assert (blocks.tensor[0] == 3).all()
    assert not blocks.tensor[1].any()
    blocks.close()


def _mapped() -> int:
    with open("/proc/self/maps") as maps:
        return sum("triptych" in line for line in maps)
