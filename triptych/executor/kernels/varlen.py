"""Attention both ways within spans: the pictures or windows of a vision tower.

Tiles hold a part of one long span or several whole short ones, as a plan says. Heads of 80 are cut
in 64 and 16 rather than padded to 128, which would waste three multiplications of eight. Knows no
pages and no order within a span.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from triptych.executor.kernels.attention_plan import VarlenPlan
from triptych.executor.kernels.attention_shapes import check_spans
from triptych.executor.kernels.online_softmax import LOG2_E, dot_type, fold


@triton.jit
def _span_steps(
    query, query_rest, maximum, total, acc, acc_rest, lows, highs, first, last, keys, values,
    key_row, value_row, factor, HEAD_DIM: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr,
    STEP: tl.constexpr, DOT: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    dims = tl.arange(0, MAIN)
    more = MAIN + tl.arange(0, REST)
    for start in range(first, last, STEP):
        tokens = start + tl.arange(0, STEP)
        real = tokens < last
        at = tokens.to(tl.int64)
        mask = real[:, None] & (more < HEAD_DIM)[None, :]
        key = tl.load(keys + (at * key_row)[:, None] + dims, mask=real[:, None], other=0.0)
        scores = tl.dot(query, tl.trans(key.to(DOT)), input_precision="ieee")
        if MAIN < HEAD_DIM:
            key = tl.load(keys + (at * key_row)[:, None] + more, mask=mask, other=0.0)
            scores = tl.dot(query_rest, tl.trans(key.to(DOT)), scores, input_precision="ieee")
        if MASKED:
            is_seen = (tokens[None, :] >= lows[:, None]) & (tokens[None, :] < highs[:, None])
            scores = tl.where(is_seen, scores, float("-inf"))
        weights, maximum, total, fade = fold(scores, factor, maximum, total)
        weights = weights.to(DOT)
        value = tl.load(values + (at * value_row)[:, None] + dims, mask=real[:, None], other=0.0)
        acc = tl.dot(weights, value.to(DOT), acc * fade[:, None], input_precision="ieee")
        if MAIN < HEAD_DIM:
            value = tl.load(values + (at * value_row)[:, None] + more, mask=mask, other=0.0)
            acc_rest = acc_rest * fade[:, None]
            acc_rest = tl.dot(weights, value.to(DOT), acc_rest, input_precision="ieee")
    return maximum, total, acc, acc_rest


@triton.jit
def varlen_tile(
    query, keys, values, lows, highs, tiles, out, query_row, query_head, key_row, key_head,
    value_row, value_head, out_row, out_head, factor, HEAD_DIM: tl.constexpr, MAIN: tl.constexpr,
    REST: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """One tile and head. Whole steps of a single span need no mask."""
    head, tile = tl.program_id(0), tl.program_id(1)
    tiles += tile * 5
    first, last = tl.load(tiles), tl.load(tiles + 1)
    low, high = tl.load(tiles + 2), tl.load(tiles + 3)
    is_single = tl.load(tiles + 4) == 1
    rows = first + tl.arange(0, ROWS)
    real = rows < last
    dims = tl.arange(0, MAIN)
    more = MAIN + tl.arange(0, REST)
    mask = real[:, None] & (more < HEAD_DIM)[None, :]
    at = rows.to(tl.int64)
    query_at = query + head * query_head + (at * query_row)[:, None]
    queries = tl.load(query_at + dims, mask=real[:, None], other=0.0).to(DOT)
    queries_rest = tl.zeros([ROWS, REST], DOT)
    if MAIN < HEAD_DIM:
        queries_rest = tl.load(query_at + more, mask=mask, other=0.0).to(DOT)
    row_lows = tl.load(lows + rows, mask=real, other=0)
    row_highs = tl.load(highs + rows, mask=real, other=0)
    maximum = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, MAIN], tl.float32)
    acc_rest = tl.zeros([ROWS, REST], tl.float32)
    keys += head * key_head
    values += head * value_head
    whole = low + tl.where(is_single, (high - low) // STEP * STEP, 0)
    maximum, total, acc, acc_rest = _span_steps(
        queries, queries_rest, maximum, total, acc, acc_rest, row_lows, row_highs, low, whole,
        keys, values, key_row, value_row, factor, HEAD_DIM, MAIN, REST, STEP, DOT, False,
    )  # fmt: skip
    maximum, total, acc, acc_rest = _span_steps(
        queries, queries_rest, maximum, total, acc, acc_rest, row_lows, row_highs, whole, high,
        keys, values, key_row, value_row, factor, HEAD_DIM, MAIN, REST, STEP, DOT, True,
    )  # fmt: skip
    inverse = 1.0 / tl.where(total == 0.0, 1.0, total)[:, None]
    out_at = out + head * out_head + (at * out_row)[:, None]
    tl.store(out_at + dims, (acc * inverse).to(out.dtype.element_ty), mask=real[:, None])
    if MAIN < HEAD_DIM:
        tl.store(out_at + more, (acc_rest * inverse).to(out.dtype.element_ty), mask=mask)


def varlen_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: VarlenPlan,
    *,
    scale: float,
    out: Tensor | None = None,
) -> Tensor:
    """``query``, ``key``, ``value`` (tokens, heads, head_dim) of one type, float32, float16 or
    bfloat16, views of one tensor if need be: only the last dimension must be contiguous, and
    head_dim be 16 or more. Each token sees all tokens of its span in ``plan``, and no other.
    Returns (tokens, heads, head_dim) in the query's type. Raises InvariantBroken if shapes or types
    do not fit.

    FlashAttention-2, arXiv 2307.08691, section 3, without its causal mask.
    """
    check_spans(query, key, value, plan.lows, out, scale)
    _, heads, head_dim = query.shape
    out = torch.empty_like(query) if out is None else out
    main = 1 << (head_dim.bit_length() - 1)
    varlen_tile[(heads, len(plan.tiles))](
        query,
        key,
        value,
        plan.lows,
        plan.highs,
        plan.tiles,
        out,
        *query.stride()[:2],
        *key.stride()[:2],
        *value.stride()[:2],
        *out.stride()[:2],
        scale * LOG2_E,
        HEAD_DIM=head_dim,
        MAIN=main,
        REST=max(16, triton.next_power_of_2(head_dim - main)),
        ROWS=plan.tile_rows,
        STEP=64 if query.element_size() == 2 else 32,
        DOT=dot_type(query.dtype),
        num_warps=8 if plan.tile_rows > 64 else 4,
        num_stages=3,
    )
    return out
