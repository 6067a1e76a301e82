"""Several tokens of each sequence against its paged context: chunked prefill.

Flash attention over tiles of (query, head) pairs that share a KV head. Steps that every row of a
tile sees whole are not masked, steps that none sees are skipped. Knows nothing of chunks: a plan
says how many rows each sequence brings and where they end.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from triptych.executor.kernels.attention_plan import PrefillPlan
from triptych.executor.kernels.attention_shapes import check_paged
from triptych.executor.kernels.decode import UNBOUNDED
from triptych.executor.kernels.online_softmax import LOG2_E, attend, dot_type, padded, tiling


@triton.jit(do_not_specialize=["window"])
def prefill_tile(
    query, keys, values, key_scales, value_scales, table, row_starts, ends, tiles, out,
    query_row, query_head, key_block, key_token, key_head, value_block, value_token, value_head,
    scale_block, scale_token, table_row, out_row, out_head, factor, window, GROUP: tl.constexpr,
    ROWS: tl.constexpr, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    STEP: tl.constexpr, DOT: tl.constexpr, IS_WINDOWED: tl.constexpr,
):  # fmt: skip
    """One tile and KV head: three ranges of keys, masked, whole and masked again."""
    kv_head, tile = tl.program_id(0), tl.program_id(1)
    sequence, pair = tl.load(tiles + tile * 2), tl.load(tiles + tile * 2 + 1)
    start = tl.load(row_starts + sequence)
    count = tl.load(row_starts + sequence + 1) - start
    before = tl.load(ends + sequence) - count
    pairs = pair + tl.arange(0, ROWS)
    rows = pairs // GROUP
    heads = kv_head * GROUP + pairs % GROUP
    dims = tl.arange(0, WIDTH)
    mask = (rows < count)[:, None] & (dims < HEAD_DIM)[None, :]
    at = (start + rows).to(tl.int64)
    query_at = query + (at * query_row + heads * query_head)[:, None] + dims[None, :]
    queries = tl.load(query_at, mask=mask, other=0.0).to(DOT)
    highs = before + rows + 1
    lows = tl.maximum(highs - window, 0)
    least = before + pair // GROUP + 1
    most = before + tl.minimum((pair + ROWS - 1) // GROUP + 1, count)
    whole = least // STEP * STEP
    keys += kv_head * key_head
    values += kv_head * value_head
    if key_scales is not None:
        key_scales += kv_head
        value_scales += kv_head
    table += sequence.to(tl.int64) * table_row
    maximum = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, WIDTH], tl.float32)
    first = 0
    if IS_WINDOWED:
        inner = tl.cdiv(tl.maximum(most - window, 0), STEP) * STEP
        first = tl.maximum(least - window, 0) // STEP * STEP
        maximum, total, acc = attend(
            queries, maximum, total, acc, lows, highs, first, tl.minimum(inner, most),
            keys, values, key_scales, value_scales, table, key_block, key_token, value_block,
            value_token, scale_block, scale_token, factor, HEAD_DIM, BLOCK_SIZE, STEP, DOT, True,
        )  # fmt: skip
        first = inner
        whole = tl.maximum(whole, first)
    maximum, total, acc = attend(
        queries, maximum, total, acc, lows, highs, first, whole,
        keys, values, key_scales, value_scales, table, key_block, key_token, value_block,
        value_token, scale_block, scale_token, factor, HEAD_DIM, BLOCK_SIZE, STEP, DOT, False,
    )  # fmt: skip
    maximum, total, acc = attend(
        queries, maximum, total, acc, lows, highs, whole, most,
        keys, values, key_scales, value_scales, table, key_block, key_token, value_block,
        value_token, scale_block, scale_token, factor, HEAD_DIM, BLOCK_SIZE, STEP, DOT, True,
    )  # fmt: skip
    answer = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    out_at = out + (at * out_row + heads * out_head)[:, None] + dims[None, :]
    tl.store(out_at, answer.to(out.dtype.element_ty), mask=mask)


def paged_prefill(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    table: Tensor,
    plan: PrefillPlan,
    *,
    scale: float,
    window: int = 0,
    key_scales: Tensor | None = None,
    value_scales: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """``query`` (tokens, heads, head_dim) float32, float16 or bfloat16: the rows of several
    sequences, packed as ``plan`` says, their own KV stored already. ``keys`` and ``values``
    (blocks, block_size, KV heads, head_dim) views of one layer, of the query's type, or int8 or
    float8_e4m3fn with float32 scales (blocks, block_size, KV heads); ``table`` int32 (sequences,
    blocks). Row ``r`` of ``n`` sees the first ``end - n + r + 1`` tokens, and of these the last
    ``window`` where that is above 0. Returns (tokens, heads, head_dim) in the query's type; rows
    that no sequence owns are left as they are.

    A tile is of one sequence and steps begin at multiples of their length: bits depend on others
    only through the size of a tile, which ``plan_prefill(deterministic=True)`` fixes. Raises
    InvariantBroken if shapes or types do not fit. FlashAttention-2, arXiv 2307.08691, section 3.
    """
    check_paged(query, keys, values, table, key_scales, value_scales, out, scale)
    plan.check(query, keys, table)
    out = torch.empty_like(query) if out is None else out
    step, warps, stages = tiling(keys.dtype, query.shape[2], plan.tile_rows)
    prefill_tile[(keys.shape[2], len(plan.tiles))](
        query,
        keys,
        values,
        key_scales,
        value_scales,
        table,
        plan.row_starts,
        plan.ends,
        plan.tiles,
        out,
        *query.stride()[:2],
        *keys.stride()[:3],
        *values.stride()[:3],
        *((0, 0) if key_scales is None else key_scales.stride()[:2]),
        table.stride(0),
        *out.stride()[:2],
        scale * LOG2_E,
        window or UNBOUNDED,
        GROUP=plan.group,
        ROWS=plan.tile_rows,
        HEAD_DIM=query.shape[2],
        WIDTH=padded(query.shape[2]),
        BLOCK_SIZE=keys.shape[1],
        STEP=step,
        DOT=dot_type(query.dtype),
        IS_WINDOWED=window > 0,
        num_warps=warps,
        num_stages=stages,
    )
    return out
