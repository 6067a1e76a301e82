"""The loop that attention kernels share: queries against a range of paged keys and values.

Softmax goes by in one pass: a running maximum and sum, and what was summed before is scaled when
the maximum grows (Milakov and Gimelshein, arXiv 1805.02867; FlashAttention-2, arXiv 2307.08691,
section 3.1). Exponents are of base 2. Knows pages and scales; not whose they are.
"""

import torch
import triton
import triton.language as tl

from triptych.executor.kernels.launch import is_interpreted

LOG2_E = 1.4426950408889634

_TYPES = {
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
}


def dot_type(dtype: torch.dtype) -> tl.dtype:
    """What tensor cores multiply for queries of ``dtype``. The interpreter's arrays know no
    bfloat16, so that it multiplies the same values in float32."""
    return tl.float32 if is_interpreted() and dtype == torch.bfloat16 else _TYPES[dtype]


def padded(head_dim: int) -> int:
    """The width of a tile for heads of ``head_dim``: a power of two, and no less than a product
    takes."""
    return max(16, int(triton.next_power_of_2(head_dim)))


def tiling(kv: torch.dtype, head_dim: int, rows: int) -> tuple[int, int, int]:
    """(tokens by step, warps, stages) for tiles of ``rows`` queries against keys of type ``kv``.

    Chosen by what a compiler for sm_90 reports: two programs by processor where rows are few and
    the pace is that of memory; no spilled register where they are many. Bytes become numbers in
    registers, so that quantised keys come in shorter steps than their size suggests.
    """
    row_bytes = padded(head_dim) * kv.itemsize
    if rows <= 32:
        return (64 if row_bytes <= 256 else 32), 4, 4
    return (64 if row_bytes <= 256 and kv.itemsize > 1 else 32), (8 if rows > 64 else 4), 3


@triton.jit
def fold(scores, factor, maximum, total):
    """Weights of ``scores`` times ``factor`` (positive, to base 2), the new maximum and sum, and
    what older sums are scaled by. A row that has seen nothing yet keeps its maximum at -inf and its
    sum at 0."""
    higher = tl.maximum(maximum, tl.max(scores, 1) * factor)
    ground = tl.where(higher == float("-inf"), 0.0, higher)
    weights = tl.exp2(scores * factor - ground[:, None])
    fade = tl.exp2(maximum - ground)
    return weights, higher, total * fade + tl.sum(weights, 1), fade


@triton.jit
def attend(
    query, maximum, total, acc, lows, highs, first, last, keys, values, key_scales, value_scales,
    table, key_block, key_token, value_block, value_token, scale_block, scale_token, factor,
    HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr, STEP: tl.constexpr, DOT: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """Adds tokens ``[first, last)`` to (maximum, total, acc). With MASKED row ``r`` sees those of
    ``[lows[r], highs[r])``, else every row sees whole steps. Pointers are those of the sequence's
    table and of the KV head; tokens behind ``last`` are never read, whatever lies there."""
    dims = tl.arange(0, acc.shape[1])
    tokens = first + tl.arange(0, STEP)
    # The table is read a step ahead. Were a step to read its own, the compiler would have to give
    # half of its pipeline's stages to the wait for it, and keys would arrive later.
    pages = tl.load(table + tokens // BLOCK_SIZE, mask=tokens < last, other=0)
    for _ in range(first, last, STEP):
        real = tokens < last
        blocks = pages.to(tl.int64)
        within = tokens % BLOCK_SIZE
        mask = real[:, None] & (dims < HEAD_DIM)[None, :]
        key_at = keys + (blocks * key_block + within * key_token)[:, None] + dims[None, :]
        key = tl.load(key_at, mask=mask, other=0.0)
        scores = tl.dot(query, tl.trans(key.to(DOT)), input_precision="ieee")
        if key_scales is not None:
            scale_at = blocks * scale_block + within * scale_token
            scores *= tl.load(key_scales + scale_at, mask=real, other=0.0)[None, :]
        if MASKED:
            is_seen = (tokens[None, :] >= lows[:, None]) & (tokens[None, :] < highs[:, None])
            scores = tl.where(is_seen, scores, float("-inf"))
        weights, maximum, total, fade = fold(scores, factor, maximum, total)
        acc *= fade[:, None]
        value_at = values + (blocks * value_block + within * value_token)[:, None] + dims[None, :]
        value = tl.load(value_at, mask=mask, other=0.0)
        if value_scales is not None:
            scale_at = blocks * scale_block + within * scale_token
            weights *= tl.load(value_scales + scale_at, mask=real, other=0.0)[None, :]
        acc = tl.dot(weights.to(DOT), value.to(DOT), acc, input_precision="ieee")
        tokens += STEP
        pages = tl.load(table + tokens // BLOCK_SIZE, mask=tokens < last, other=0)
    return maximum, total, acc
