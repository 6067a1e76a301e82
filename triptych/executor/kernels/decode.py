"""One token of each sequence against its paged context, split over programs (flash decoding).

Two launches: parts of the context by (KV head, sequence, split), then a merge by log-sum-exp. A
merge in the last program to arrive would save the second launch, at the price of counters that must
be zero at each start and of atomics; between kernels of a captured graph the launch is the cheaper.
Knows no groups of sequences: those are in ``cascade``, which uses both kernels.
"""

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from triptych.executor.kernels.attention_shapes import check_index, check_paged
from triptych.executor.kernels.online_softmax import LOG2_E, attend, dot_type, padded, tiling

UNBOUNDED = 1 << 30
"""A window that nothing falls out of."""
_FIXED_SPLIT = 512
"""Tokens of a split where results must not depend on the batch."""
LEAST_SPLIT = 256
"""Below this a merge costs more than a split saves."""
_LONGEST_SPLIT = 4096
"""However full the device is: one long context must not outlast all others."""
_ASSUMED_PROCESSORS = 132


@triton.jit(do_not_specialize=["window", "splits", "least", "slots", "offset"])
def decode_part(
    query, keys, values, key_scales, value_scales, table, ends, skips, target, stats, query_row,
    query_head, key_block, key_token, key_head, value_block, value_token, value_head,
    scale_block, scale_token, table_row, target_row, target_head, factor, window, splits, least,
    slots, offset, HEADS: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, BLOCK_SIZE: tl.constexpr, STEP: tl.constexpr,
    DOT: tl.constexpr, IS_WHOLE: tl.constexpr,
):  # fmt: skip
    """A split's heads of one KV head. Writes the answer to ``target`` if IS_WHOLE, else a sum
    that is not normalised to slot ``offset + split``, and its (maximum, total) to ``stats``."""
    kv_head, row, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    row = row.to(tl.int64)
    end = tl.load(ends + row)
    begin = tl.maximum(end - window, 0)
    if skips is not None:
        begin = tl.maximum(begin, tl.load(skips + row))
    length = tl.cdiv(tl.cdiv(tl.maximum(end - begin, 0), splits), STEP) * STEP
    length = tl.maximum(length, least)
    first = begin + split * length
    last = tl.minimum(first + length, end)
    heads = tl.arange(0, ROWS)
    dims = tl.arange(0, WIDTH)
    is_head = heads < GROUP
    heads += kv_head * GROUP
    mask = is_head[:, None] & (dims < HEAD_DIM)[None, :]
    slot = (row * HEADS + heads) * slots + offset + split
    maximum = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, WIDTH], tl.float32)
    if first < last:
        query_at = query + row * query_row + heads[:, None] * query_head + dims[None, :]
        rows = tl.load(query_at, mask=mask, other=0.0).to(DOT)
        maximum, total, acc = attend(
            rows, maximum, total, acc, tl.full([ROWS], 0, tl.int32) + first,
            tl.full([ROWS], 0, tl.int32) + last, first, last, keys + kv_head * key_head,
            values + kv_head * value_head,
            key_scales if key_scales is None else key_scales + kv_head,
            value_scales if value_scales is None else value_scales + kv_head,
            table + row * table_row, key_block, key_token, value_block, value_token, scale_block,
            scale_token, factor, HEAD_DIM, BLOCK_SIZE, STEP, DOT, True,
        )  # fmt: skip
    if IS_WHOLE:
        answer = acc / tl.where(total == 0.0, 1.0, total)[:, None]
        target_at = target + row * target_row + heads[:, None] * target_head + dims[None, :]
        tl.store(target_at, answer.to(target.dtype.element_ty), mask=mask)
    else:
        tl.store(stats + slot * 2, maximum, mask=is_head)
        tl.store(stats + slot * 2 + 1, total, mask=is_head)
        if first < last:
            tl.store(target + slot[:, None] * HEAD_DIM + dims[None, :], acc, mask=mask)


@triton.jit(do_not_specialize=["slots", "shared"])
def merge_parts(
    partial, stats, skips, out, out_row, out_head, slots, shared, HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The slots of one (head, sequence), first to last. Empty ones have a maximum of -inf and are
    not read; they add exact zeros, so that their number changes no bit. The first ``shared`` slots
    are of prefixes: a row that skips nothing has none."""
    head, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    dims = tl.arange(0, WIDTH)
    base = (row * HEADS + head) * slots
    highest = tl.full([], float("-inf"), tl.float32)
    total = tl.zeros([], tl.float32)
    acc = tl.zeros([WIDTH], tl.float32)
    start = 0
    if skips is not None:
        start = tl.where(tl.load(skips + row) > 0, 0, shared)
    for first in range(start, slots, CHUNK):
        slot = first + tl.arange(0, CHUNK)
        is_slot = slot < slots
        maximum = tl.load(stats + (base + slot) * 2, mask=is_slot, other=float("-inf"))
        sums = tl.load(stats + (base + slot) * 2 + 1, mask=is_slot, other=0.0)
        mask = (maximum > float("-inf"))[:, None] & (dims < HEAD_DIM)[None, :]
        part_at = partial + (base + slot)[:, None] * HEAD_DIM + dims[None, :]
        parts = tl.load(part_at, mask=mask, other=0.0)
        higher = tl.maximum(highest, tl.max(maximum, 0))
        ground = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(maximum - ground)
        fade = tl.exp2(highest - ground)
        total = total * fade + tl.sum(weights * sums, 0)
        acc = acc * fade + tl.sum(weights[:, None] * parts, 0)
        highest = higher
    answer = acc / tl.where(total == 0.0, 1.0, total)
    out_at = out + row * out_row + head * out_head + dims
    tl.store(out_at, answer.to(out.dtype.element_ty), mask=dims < HEAD_DIM)


@cache
def processors(device: torch.device) -> int:
    """Streaming multiprocessors of ``device``."""
    if device.type != "cuda":
        return _ASSUMED_PROCESSORS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def num_splits(tokens: int, programs: int, device: torch.device) -> int:
    """Splits of contexts of up to ``tokens`` that give each processor two programs, where there
    are ``programs`` without a split."""
    wanted = -(-2 * processors(device) // max(programs, 1))
    wanted = max(wanted, -(-tokens // _LONGEST_SPLIT))
    return max(1, min(wanted, -(-tokens // LEAST_SPLIT)))


def launch_decode(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    key_scales: Tensor | None,
    value_scales: Tensor | None,
    table: Tensor,
    ends: Tensor,
    skips: Tensor | None,
    target: Tensor,
    stats: Tensor | None,
    *,
    scale: float,
    window: int,
    splits: int,
    least: int,
    slots: int,
    offset: int,
) -> None:
    """``decode_part`` over all sequences: to an answer like ``query`` in ``target``, or with
    ``stats`` to slots ``[offset, offset + splits)`` of each (sequence, head)."""
    kv_heads = keys.shape[2]
    group = query.shape[1] // kv_heads
    rows = max(16, triton.next_power_of_2(group))
    step, warps, stages = tiling(keys.dtype, query.shape[2], rows)
    decode_part[(kv_heads, query.shape[0], splits)](
        query,
        keys,
        values,
        key_scales,
        value_scales,
        table,
        ends,
        skips,
        target,
        stats,
        *query.stride()[:2],
        *keys.stride()[:3],
        *values.stride()[:3],
        *((0, 0) if key_scales is None else key_scales.stride()[:2]),
        table.stride(0),
        *target.stride()[:2],
        scale * LOG2_E,
        window,
        splits,
        least,
        slots,
        offset,
        HEADS=query.shape[1],
        GROUP=group,
        ROWS=rows,
        HEAD_DIM=query.shape[2],
        WIDTH=padded(query.shape[2]),
        BLOCK_SIZE=keys.shape[1],
        STEP=step,
        DOT=dot_type(query.dtype),
        IS_WHOLE=stats is None,
        num_warps=warps,
        num_stages=stages,
    )


def launch_merge(
    partial: Tensor, stats: Tensor, skips: Tensor | None, shared: int, out: Tensor
) -> None:
    """``merge_parts`` of all (sequence, head) into ``out``."""
    rows, heads, head_dim = out.shape
    merge_parts[(heads, rows)](
        partial,
        stats,
        skips,
        out,
        *out.stride()[:2],
        stats.shape[2],
        shared,
        HEADS=heads,
        HEAD_DIM=head_dim,
        WIDTH=padded(head_dim),
        CHUNK=16,
        num_warps=4,
    )


def scratch(query: Tensor, slots: int) -> tuple[Tensor, Tensor]:
    """Memory for sums (sequences, heads, slots, head_dim) and for their (maximum, total)."""
    shape = (query.shape[0], query.shape[1], slots)
    partial = query.new_empty((*shape, query.shape[2]), dtype=torch.float32)
    return partial, query.new_empty((*shape, 2), dtype=torch.float32)


def paged_decode(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    table: Tensor,
    ends: Tensor,
    *,
    scale: float,
    window: int = 0,
    key_scales: Tensor | None = None,
    value_scales: Tensor | None = None,
    deterministic: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """``query`` (sequences, heads, head_dim) float32, float16 or bfloat16, one token by sequence,
    whose own KV is stored already; ``keys`` and ``values`` (blocks, block_size, KV heads, head_dim)
    views of one layer, of the query's type, or int8 or float8_e4m3fn with float32 scales (blocks,
    block_size, KV heads); ``table`` int32 (sequences, blocks); ``ends`` int32 (sequences), tokens
    seen by each: 0 for a row that only pads, whose answer is 0. A ``window`` above 0 hides all but
    the last ``window`` tokens. Returns (sequences, heads, head_dim) in the query's type.

    Never waits for the device: splits come from the width of ``table``, so that it can be captured
    in a CUDA graph. With ``deterministic`` splits have a fixed length and a sequence's bits depend
    on itself only. Raises InvariantBroken if shapes or types do not fit.

    Split contexts: Flash-Decoding (PyTorch blog, 2023). Heads that share keys as rows of one tile:
    FlashInfer, arXiv 2501.01005, section 3.2.
    """
    check_paged(query, keys, values, table, key_scales, value_scales, out, scale)
    check_index(ends, (query.shape[0],), "ends")
    check_index(table, (query.shape[0], table.shape[1]), "table")
    out = torch.empty_like(query) if out is None else out
    if not len(query):
        return out
    tokens = min(table.shape[1] * keys.shape[1], window or UNBOUNDED)
    splits = -(-tokens // _FIXED_SPLIT)
    if not deterministic:
        splits = num_splits(tokens, len(query) * keys.shape[2], query.device)
    partial, stats = (out, None) if splits == 1 else scratch(query, splits)
    launch_decode(
        query,
        keys,
        values,
        key_scales,
        value_scales,
        table,
        ends,
        None,
        partial,
        stats,
        scale=scale,
        window=window or UNBOUNDED,
        splits=splits,
        least=_FIXED_SPLIT if deterministic else LEAST_SPLIT,
        slots=splits,
        offset=0,
    )
    if stats is not None:
        launch_merge(partial, stats, None, 0, out)
    return out
