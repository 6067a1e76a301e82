"""Decode of sequences that share a prefix: its keys are read once a group, not once a sequence.

Two phases, then a merge by log-sum-exp: all queries of a group against its prefix, many rows in a
tile, and each sequence against the rest of its own context (``decode`` from where its prefix ends).
Knows which sequences share from a plan; who made the prefix shared is the cache's business.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from triptych.executor.kernels.attention_plan import CascadePlan
from triptych.executor.kernels.attention_shapes import check_index, check_paged
from triptych.executor.kernels.decode import (
    LEAST_SPLIT,
    UNBOUNDED,
    launch_decode,
    launch_merge,
    num_splits,
    scratch,
)
from triptych.executor.kernels.online_softmax import LOG2_E, attend, dot_type, padded, tiling


@triton.jit(do_not_specialize=["splits", "slots"])
def prefix_part(
    query, keys, values, key_scales, value_scales, table, members, group_starts, prefix_ends,
    tiles, partial, stats, query_row, query_head, key_block, key_token, key_head, value_block,
    value_token, value_head, scale_block, scale_token, table_row, factor, splits, slots,
    HEADS: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK_SIZE: tl.constexpr, STEP: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """A tile's (member, head) pairs of one KV head against a split of their prefix, to slot
    ``split`` of each. The prefix is read through the table of the group's first member."""
    kv_head, tile, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    group = tl.load(tiles + tile * 2)
    start, stop = tl.load(group_starts + group), tl.load(group_starts + group + 1)
    pairs = tl.load(tiles + tile * 2 + 1) + tl.arange(0, ROWS)
    is_pair = start + pairs // GROUP < stop
    rows = tl.load(members + start + pairs // GROUP, mask=is_pair, other=0).to(tl.int64)
    heads = kv_head * GROUP + pairs % GROUP
    dims = tl.arange(0, WIDTH)
    mask = is_pair[:, None] & (dims < HEAD_DIM)[None, :]
    end = tl.load(prefix_ends + group)
    length = tl.cdiv(tl.cdiv(end, splits), STEP) * STEP
    first = split * length
    last = tl.minimum(first + length, end)
    maximum = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, WIDTH], tl.float32)
    slot = (rows * HEADS + heads) * slots + split
    if first < last:
        query_at = query + (rows * query_row + heads * query_head)[:, None] + dims[None, :]
        maximum, total, acc = attend(
            tl.load(query_at, mask=mask, other=0.0).to(DOT), maximum, total, acc,
            tl.full([ROWS], 0, tl.int32), tl.full([ROWS], 0, tl.int32) + last, first, last,
            keys + kv_head * key_head, values + kv_head * value_head,
            key_scales if key_scales is None else key_scales + kv_head,
            value_scales if value_scales is None else value_scales + kv_head,
            table + tl.load(members + start).to(tl.int64) * table_row, key_block, key_token,
            value_block, value_token, scale_block, scale_token, factor, HEAD_DIM, BLOCK_SIZE,
            STEP, DOT, True,
        )  # fmt: skip
        tl.store(partial + slot[:, None] * HEAD_DIM + dims[None, :], acc, mask=mask)
    tl.store(stats + slot * 2, maximum, mask=is_pair)
    tl.store(stats + slot * 2 + 1, total, mask=is_pair)


def _launch_prefixes(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    key_scales: Tensor | None,
    value_scales: Tensor | None,
    table: Tensor,
    plan: CascadePlan,
    partial: Tensor,
    stats: Tensor,
    *,
    scale: float,
    splits: int,
) -> None:
    step, warps, stages = tiling(keys.dtype, query.shape[2], plan.tile_rows)
    prefix_part[(keys.shape[2], len(plan.tiles), splits)](
        query,
        keys,
        values,
        key_scales,
        value_scales,
        table,
        plan.members,
        plan.group_starts,
        plan.prefix_ends,
        plan.tiles,
        partial,
        stats,
        *query.stride()[:2],
        *keys.stride()[:3],
        *values.stride()[:3],
        *((0, 0) if key_scales is None else key_scales.stride()[:2]),
        table.stride(0),
        scale * LOG2_E,
        splits,
        stats.shape[2],
        HEADS=query.shape[1],
        GROUP=plan.group,
        ROWS=plan.tile_rows,
        HEAD_DIM=query.shape[2],
        WIDTH=padded(query.shape[2]),
        BLOCK_SIZE=keys.shape[1],
        STEP=step,
        DOT=dot_type(query.dtype),
        num_warps=warps,
        num_stages=stages,
    )


def cascade_decode(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    table: Tensor,
    ends: Tensor,
    plan: CascadePlan,
    *,
    scale: float,
    key_scales: Tensor | None = None,
    value_scales: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """As ``decode.paged_decode`` and equal to it but for rounding; ``table`` and ``ends`` are whole
    sequences, prefix included, and ``plan`` says which rows share how many tokens.

    No window: what of a prefix is seen through one differs by sequence. The order of sums follows
    the plan, so that bits depend on who shares; where they must not, use ``paged_decode``. Raises
    InvariantBroken if shapes or types do not fit.

    Two phases: ChunkAttention (ACL 2024, arXiv 2402.15220), section 3.2; the merge of attention
    states: FlashInfer, arXiv 2501.01005, section 2.2.
    """
    check_paged(query, keys, values, table, key_scales, value_scales, out, scale)
    check_index(ends, (query.shape[0],), "ends")
    check_index(table, (query.shape[0], table.shape[1]), "table")
    plan.check(query, keys)
    kv_heads = keys.shape[2]
    out = torch.empty_like(query) if out is None else out
    if not len(query):
        return out
    device = query.device
    shared = 0
    if len(plan.tiles):
        shared = num_splits(plan.longest, len(plan.tiles) * kv_heads, device)
    own = num_splits(table.shape[1] * keys.shape[1], len(query) * kv_heads, device)
    partial, stats = scratch(query, shared + own)
    pages = (query, keys, values, key_scales, value_scales, table)
    if shared:
        _launch_prefixes(*pages, plan, partial, stats, scale=scale, splits=shared)
    launch_decode(
        *pages,
        ends,
        plan.skips,
        partial,
        stats,
        scale=scale,
        window=UNBOUNDED,
        splits=own,
        least=LEAST_SPLIT,
        slots=shared + own,
        offset=shared,
    )
    launch_merge(partial, stats, plan.skips, shared, out)
    return out
