"""Whole blocks between a store and contiguous memory, and rows of embeddings to where they belong.

Moves bytes at the speed of memory: no number is looked at. Knows runs of bytes and an index on the
device, not what a block holds.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from triptych.executor.kernels.arguments import is_dense, require

WORDS = ((8, torch.int64), (4, torch.int32), (2, torch.int16), (1, torch.uint8))
TILE = 2048
"""Words of one program: 16 KiB where they are of eight bytes, 16 bytes a load."""


@triton.jit
def copy_runs_kernel(
    store,
    staging,
    index,
    length,
    block_stride,
    shard_stride,
    first,
    shards,
    TO_STORE: tl.constexpr,
    TILE: tl.constexpr,
):
    """TILE words of one run. Axis 0 counts runs: shards of the blocks of the index."""
    run = tl.program_id(0).to(tl.int64)
    block = tl.load(index + run // shards).to(tl.int64)
    if block >= 0:
        column = tl.program_id(1) * TILE + tl.arange(0, TILE)
        is_inside = column < length
        far = store + block * block_stride + (run % shards) * shard_stride + first + column
        near = staging + run * length + column
        if TO_STORE:
            tl.store(far, tl.load(near, mask=is_inside), mask=is_inside)
        else:
            tl.store(near, tl.load(far, mask=is_inside), mask=is_inside)


@triton.jit
def gather_rows_kernel(
    rows, index, targets, out, width, row_stride, out_stride, TILE: tl.constexpr
):
    """TILE numbers of one row."""
    at = tl.program_id(0).to(tl.int64)
    source = tl.load(index + at).to(tl.int64)
    target = tl.load(targets + at).to(tl.int64)
    if (source >= 0) & (target >= 0):
        column = tl.program_id(1) * TILE + tl.arange(0, TILE)
        is_inside = column < width
        value = tl.load(rows + source * row_stride + column, mask=is_inside)
        tl.store(out + target * out_stride + column, value, mask=is_inside)


def gather_blocks(
    store: Tensor,
    index: Tensor,
    out: Tensor,
    *,
    layers: range | None = None,
    shard: int | None = None,
    num_shards: int = 1,
) -> Tensor:
    """Copy blocks ``index`` of ``store``, one behind the other, to ``out``; returns ``out``.

    ``store`` is contiguous (blocks * num_shards, layers, ...) of any dtype, as in
    ``executor.block_store``: the run of shard ``s`` of block ``b`` is ``b * num_shards + s``.
    ``index`` int32 or int64 (n,) on the device, not checked; negative: not copied. ``out`` is
    contiguous, of the store's dtype: (n * shards, layers, ...) with the shards and layers that are
    asked for, a range of step 1 (None: all). Raises InvariantBroken if shapes do not fit."""
    _copy(store, index, out, layers, shard, num_shards, to_store=False)
    return out


def scatter_blocks(
    staging: Tensor,
    store: Tensor,
    index: Tensor,
    *,
    layers: range | None = None,
    shard: int | None = None,
    num_shards: int = 1,
) -> Tensor:
    """The way back from ``gather_blocks``: ``staging`` to blocks ``index``, distinct, of
    ``store``; returns ``store``. What is not asked for stays. Raises InvariantBroken if shapes do
    not fit."""
    _copy(store, index, staging, layers, shard, num_shards, to_store=True)
    return store


def _copy(
    store: Tensor,
    index: Tensor,
    staging: Tensor,
    layers: range | None,
    shard: int | None,
    num_shards: int,
    *,
    to_store: bool,
) -> None:
    require(store.is_contiguous() and store.ndim >= 2, "a store is contiguous")
    require(num_shards > 0 and store.shape[0] % num_shards == 0, "a store has whole blocks")
    require(shard is None or 0 <= shard < num_shards, "a shard is one of the store's")
    span = range(store.shape[1]) if layers is None else layers
    require(span.step == 1 and 0 <= span.start <= span.stop <= store.shape[1], "layers are there")
    _check_index(index)
    shards = num_shards if shard is None else 1
    shape = (len(index) * shards, len(span), *store.shape[2:])
    require(staging.shape == shape and staging.is_contiguous(), "staging holds what is asked for")
    require(staging.dtype == store.dtype, "staging has the store's dtype")
    if not staging.numel():
        return
    layer = store.stride(1) * store.element_size()
    run, length = layer * store.shape[1], layer * len(span)
    first = (shard or 0) * run + span.start * layer
    size, dtype = _word(layer, store.data_ptr(), staging.data_ptr())
    copy_runs_kernel[(len(index) * shards, triton.cdiv(length // size, TILE))](
        store.view(-1).view(torch.uint8).view(dtype),
        staging.view(-1).view(torch.uint8).view(dtype),
        index, length // size, num_shards * run // size, run // size, first // size, shards,
        TO_STORE=to_store, TILE=TILE, num_warps=4,
    )  # fmt: skip


def gather_rows(
    store_rows: Tensor, index: Tensor, out: Tensor, *, targets: Tensor | None = None
) -> Tensor:
    """``out[targets[i]] = store_rows[index[i]]``: visual tokens' embeddings among those of text.

    ``store_rows`` (rows, width) and ``out`` (any, width) of one dtype, with any row stride;
    ``index`` and ``targets`` int32 or int64 (n,), not checked, targets distinct (None: the first n
    rows). A pair with a negative number is not copied. Returns ``out``. Raises InvariantBroken if
    shapes do not fit."""
    require(store_rows.ndim == out.ndim == 2 and is_dense(store_rows), "rows are (rows, width)")
    require(is_dense(out) and out.shape[1] == store_rows.shape[1], "rows are equally wide")
    require(out.dtype == store_rows.dtype, "rows have one dtype")
    _check_index(index)
    if targets is None:
        targets = torch.arange(len(index), device=index.device, dtype=index.dtype)
        require(len(index) <= len(out), "out has a row for each of the index")
    _check_index(targets)
    require(len(targets) == len(index), "a target for each row")
    width = out.shape[1]
    if len(index) and width:
        gather_rows_kernel[(len(index), triton.cdiv(width, TILE))](
            store_rows, index, targets, out, width, store_rows.stride(0), out.stride(0),
            TILE=TILE, num_warps=4,
        )  # fmt: skip
    return out


def _check_index(index: Tensor) -> None:
    require(index.ndim == 1 and index.is_contiguous(), "an index is (n,)")
    require(index.dtype in (torch.int32, torch.int64), "an index is int32 or int64")


def _word(*places: int) -> tuple[int, torch.dtype]:
    """The largest word that all ``places`` in bytes are multiples of."""
    return next(word for word in WORDS if all(place % word[0] == 0 for place in places))
