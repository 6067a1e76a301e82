"""Movers of blocks and rows against their twins: every byte, and none beside."""

import pytest
import torch

from triptych.core.errors import InvariantBroken
from triptych.executor.kernels.reference import blocks as twins

pytest.importorskip("triton")
from triptych.executor.kernels.blocks import gather_blocks, gather_rows, scatter_blocks

SHAPES = [((3, 2, 8, 2, 16), torch.float16), ((5, 3), torch.uint8), ((3, 2, 40, 3, 80), torch.int8)]
SPANS = [None, range(2), range(1, 3), range(2, 2)]


def random_bytes(shape, dtype, device, seed=0):
    size = torch.empty(shape, dtype=dtype).numel() * dtype.itemsize
    made = torch.randint(0, 256, (size,), generator=torch.Generator().manual_seed(seed))
    return made.to(torch.uint8).view(dtype).view(shape).to(device)


def raw(x):
    return x.contiguous().view(torch.uint8)


@pytest.mark.parametrize(("shape", "dtype"), SHAPES)
@pytest.mark.parametrize("layers", SPANS)
@pytest.mark.parametrize("shard", [None, 0, 1])
def test_blocks_there_and_back(device, shape, dtype, layers, shard):
    store = random_bytes((14, *shape), dtype, device)
    index = torch.tensor([5, 0, -1, 6], dtype=torch.int32, device=device)
    count = len(index) * (2 if shard is None else 1)
    size = (count, len(layers) if layers is not None else shape[0], *shape[1:])
    asked = {"layers": layers, "shard": shard, "num_shards": 2}
    found = gather_blocks(store, index, random_bytes(size, dtype, device, 1), **asked)
    wanted = twins.gather_blocks(store, index, random_bytes(size, dtype, device, 1), **asked)
    assert torch.equal(raw(found), raw(wanted))
    target, twin = store.clone(), store.clone()
    fresh = random_bytes(size, dtype, device, 2)
    assert scatter_blocks(fresh, target, index.long(), **asked) is target
    twins.scatter_blocks(fresh, twin, index.long(), **asked)
    assert torch.equal(raw(target), raw(twin))
    again = gather_blocks(target, index, torch.empty_like(fresh), **asked)
    kept = torch.ones(count, dtype=torch.bool).view(len(index), -1)
    kept[2] = False
    assert torch.equal(raw(again)[kept.view(-1)], raw(fresh)[kept.view(-1)])


def test_long_runs_take_several_programs(device):
    store = random_bytes((3, 2, 9001), torch.float32, device)
    index = torch.tensor([2, 0], device=device)
    found = gather_blocks(store, index, torch.empty_like(store[:2]))
    assert torch.equal(raw(found), raw(store[index]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [1, 259, 2500])
def test_rows_are_spliced(device, dtype, width):
    rows = random_bytes((9, width + 4), dtype, device)[:, 3 : width + 3]
    index = torch.tensor([8, 0, -1, 3, 3], device=device)
    targets = torch.tensor([6, 1, 2, 0, -1], device=device)
    out = random_bytes((7, width), dtype, device, 1)
    twin = out.clone()
    assert gather_rows(rows, index, out, targets=targets) is out
    twins.gather_rows(rows, index, twin, targets=targets)
    assert torch.equal(raw(out), raw(twin))
    assert torch.equal(raw(out[6]), raw(rows[8]))
    first = gather_rows(rows, index[3:], out)
    assert torch.equal(raw(first[:2]), raw(rows[index[3:]]))


def test_what_does_not_fit_is_refused(device):
    store = torch.zeros(4, 3, 8, device=device)
    index = torch.zeros(2, dtype=torch.int32, device=device)
    for call in (
        lambda: gather_blocks(store, index, store[:3]),
        lambda: gather_blocks(store, index, store[:2].half()),
        lambda: gather_blocks(store, index.float(), store[:2]),
        lambda: gather_blocks(store, index, store[:2], num_shards=3),
        lambda: gather_blocks(store, index, store[:2], shard=1),
        lambda: gather_blocks(store, index, store[:2], layers=range(1, 4)),
        lambda: gather_blocks(store[:, :2], index, store[:2]),
        lambda: scatter_blocks(store[:1], store, index),
        lambda: gather_rows(store[0], index, store[0, :1]),
        lambda: gather_rows(store[0], index, store[0, :, :4]),
        lambda: gather_rows(store[0], index, store[0], targets=index[:1]),
    ):
        with pytest.raises(InvariantBroken):
            call()
