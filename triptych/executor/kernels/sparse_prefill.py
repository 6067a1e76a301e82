"""Prefill over paged keys and values where each query tile reads only the key tiles listed for it.

FlashAttention-2's loop (arXiv 2307.08691, algorithm 1) over a list of tiles instead of a range.
Knows tiles and pages; not how the lists were chosen.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from triptych.core.errors import InvariantBroken
from triptych.executor.kernels.block_mask import BlockMask

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_LOG2_E = math.log2(math.e)


@triton.jit
def _place_of(tile, row_starts, num_sequences, TILE_Q: tl.constexpr, SEQUENCES: tl.constexpr):
    """The sequence of a query tile, and the tile's first row in it."""
    number = tl.arange(0, SEQUENCES)
    is_sequence = number < num_sequences
    starts = tl.load(row_starts + number, mask=is_sequence, other=0)
    lengths = tl.load(row_starts + 1 + number, mask=is_sequence, other=0) - starts
    behind = tl.cumsum((lengths + TILE_Q - 1) // TILE_Q, 0)
    sequence = tl.sum((behind <= tile).to(tl.int32), 0)
    return sequence, (tile - tl.max(tl.where(behind <= tile, behind, 0), 0)) * TILE_Q


@triton.jit
def _pages_of(table, first, STEP: tl.constexpr, BLOCK: tl.constexpr, end, MASKED: tl.constexpr):
    """Block, offset in it and position of keys [first, first + STEP)."""
    position = first + tl.arange(0, STEP)
    if BLOCK % STEP == 0:
        one = tl.load(table + first // BLOCK, mask=first < end, other=0)
        block = one + tl.zeros([STEP], tl.int32)
    elif MASKED:
        block = tl.load(table + position // BLOCK, mask=position < end, other=0)
    else:
        block = tl.load(table + position // BLOCK)
    return block.to(tl.int64), position % BLOCK, position


@triton.jit
def _attend_tile(
    acc, top, total, q, keys, values, key_scales, value_scales, table, first, positions, end,
    scale, k_block, k_token, v_block, v_token, s_block, s_token,
    STEP: tl.constexpr, BLOCK: tl.constexpr, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr,
    QUANTISED: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``STEP`` keys into the running maximum, sum and output (base 2)."""
    block, offset, position = _pages_of(table, first, STEP, BLOCK, end, MASKED)
    lane = tl.arange(0, WIDTH)
    inside = tl.full([STEP, WIDTH], True, tl.int1)
    if WIDTH != HEAD_DIM:
        inside &= lane[None, :] < HEAD_DIM
    if MASKED:
        inside &= (position < end)[:, None]
    k_rows = keys + (block * k_block + offset * k_token)[:, None] + lane[None, :]
    v_rows = values + (block * v_block + offset * v_token)[:, None] + lane[None, :]
    if MASKED or WIDTH != HEAD_DIM:
        k = tl.load(k_rows, mask=inside, other=0.0)
        v = tl.load(v_rows, mask=inside, other=0.0)
    else:
        k = tl.load(k_rows)
        v = tl.load(v_rows)
    scores = tl.dot(q, tl.trans(k.to(q.dtype)), input_precision=PRECISION) * scale
    if QUANTISED:
        places = block * s_block + offset * s_token
        is_there = position < end
        scores *= tl.load(key_scales + places, mask=is_there, other=0.0)[None, :]
    if MASKED:
        scores = tl.where(position[None, :] <= positions[:, None], scores, float("-inf"))
    higher = tl.maximum(top, tl.max(scores, 1))
    # A row may have seen no key yet: -inf minus -inf is no number.
    shift = tl.where(higher == float("-inf"), 0.0, higher)
    weights = tl.exp2(scores - shift[:, None])
    faded = tl.exp2(top - shift)
    total = total * faded + tl.sum(weights, 1)
    if QUANTISED:
        weights *= tl.load(value_scales + places, mask=is_there, other=0.0)[None, :]
    acc = acc * faded[:, None]
    acc = tl.dot(weights.to(q.dtype), v.to(q.dtype), acc, input_precision=PRECISION)
    return acc, higher, total


@triton.jit
def _sparse_prefill(
    query, keys, values, out, table, row_starts, ends, counts, indices, key_scales, value_scales,
    scale, num_sequences, q_row, q_head, o_row, o_head, k_block, k_token, k_head, v_block, v_token,
    v_head, s_block, s_token, s_head, table_row, counts_head, indices_head, indices_tile,
    GROUP: tl.constexpr, MASK_GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr,
    TILE_Q: tl.constexpr, TILE_K: tl.constexpr, BLOCK: tl.constexpr, SEQUENCES: tl.constexpr,
    STEP: tl.constexpr, LAST: tl.constexpr, QUANTISED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    PARTS: tl.constexpr = TILE_K // STEP
    head = tl.program_id(0)  # heads that share keys run side by side
    tile = tl.num_programs(1) - 1 - tl.program_id(1)  # late tiles have most to do: they go first
    sequence, first_row = _place_of(tile, row_starts, num_sequences, TILE_Q, SEQUENCES)
    if sequence >= num_sequences:
        return
    start = tl.load(row_starts + sequence)
    length = tl.load(row_starts + sequence + 1) - start
    end = tl.load(ends + sequence)

    rows = first_row + tl.arange(0, TILE_Q)
    positions = end - length + rows
    lane = tl.arange(0, WIDTH)
    is_there = (rows < length)[:, None] & (lane < HEAD_DIM)[None, :]
    at = (start + rows).to(tl.int64)[:, None]
    q = tl.load(query + at * q_row + head * q_head + lane[None, :], mask=is_there, other=0.0)
    kv_head = head // GROUP
    keys += kv_head * k_head
    values += kv_head * v_head
    if QUANTISED:
        key_scales += kv_head * s_head
        value_scales += kv_head * s_head
    table += sequence * table_row
    count = tl.load(counts + (head // MASK_GROUP) * counts_head + tile)
    listed = indices + (head // MASK_GROUP).to(tl.int64) * indices_head + tile * indices_tile
    # Ascending: only the last few can reach beyond the first row's position.
    late = count - LAST + tl.arange(0, LAST)
    ends_at = (tl.load(listed + late, mask=late >= 0, other=-1) + 1) * TILE_K
    whole = count - tl.sum((ends_at > end - length + first_row + 1).to(tl.int32), 0)

    acc = tl.zeros([TILE_Q, WIDTH], tl.float32)
    top = tl.full([TILE_Q], float("-inf"), tl.float32)
    total = tl.zeros([TILE_Q], tl.float32)
    for step in range(whole * PARTS):
        first = tl.load(listed + step // PARTS) * TILE_K + step % PARTS * STEP
        acc, top, total = _attend_tile(
            acc, top, total, q, keys, values, key_scales, value_scales, table, first, positions,
            end, scale, k_block, k_token, v_block, v_token, s_block, s_token,
            STEP, BLOCK, HEAD_DIM, WIDTH, QUANTISED, False, PRECISION,
        )  # fmt: skip
    for step in range(whole * PARTS, count * PARTS):
        first = tl.load(listed + step // PARTS) * TILE_K + step % PARTS * STEP
        acc, top, total = _attend_tile(
            acc, top, total, q, keys, values, key_scales, value_scales, table, first, positions,
            end, scale, k_block, k_token, v_block, v_token, s_block, s_token,
            STEP, BLOCK, HEAD_DIM, WIDTH, QUANTISED, True, PRECISION,
        )  # fmt: skip
    acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    place = out + at * o_row + head * o_head + lane[None, :]
    tl.store(place, acc.to(out.dtype.element_ty), mask=is_there)


def sparse_prefill(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    table: Tensor,
    row_starts: Tensor,
    ends: Tensor,
    blocks: BlockMask,
    *,
    scale: float,
    key_scales: Tensor | None = None,
    value_scales: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Attention of chunks of several sequences over paged keys, restricted to listed tiles.

    ``query`` (tokens, heads, head_dim), sequences packed; rows of sequence ``s`` are ``[row_starts
    [s], row_starts[s + 1])`` (int32), its last row is context position ``ends[s] - 1`` (int32).
    ``keys`` and ``values`` (blocks, block_size, kv heads, head_dim) may be strided views; ``table``
    int32 (sequences, blocks of the longest). A row sees keys of its tile's list up to its own
    position; a row with none gives zeros. No tile may be listed that begins behind its query
    tile's last row. int8 and float8 keys come with ``key_scales`` and ``value_scales``, float32
    (blocks, block_size, kv heads) of the same strides. Writes to ``out`` (like ``query``) and
    returns it. A sequence's result does not depend on the others'. Raises
    InvariantBroken for shapes and dtypes that do not fit. Which tiles to list: the block-sparse
    prefill of arXiv 2407.02490, section 3, and its successors; see ``attention.selectors``.
    """
    if out is None:
        out = torch.empty_like(query)
    _check(query, keys, values, table, row_starts, ends, blocks, key_scales, value_scales, out)
    heads, head_dim = query.shape[1:]
    counts, indices = blocks.counts, blocks.indices
    scales = (key_scales, value_scales) if key_scales is not None else (keys, values)
    scale_strides = key_scales.stride() if key_scales is not None else (0, 0, 0)
    if 0 in counts.shape:
        return out
    quantised = key_scales is not None
    _sparse_prefill[(heads, counts.shape[1])](
        query, keys, values, out, table, row_starts, ends, counts, indices, *scales,
        scale * _LOG2_E, len(ends), *query.stride()[:2], *out.stride()[:2], *keys.stride()[:3],
        *values.stride()[:3], *scale_strides, table.stride(0), counts.stride(0),
        *indices.stride()[:2],
        GROUP=heads // keys.shape[2],
        MASK_GROUP=heads // counts.shape[0],
        HEAD_DIM=head_dim,
        WIDTH=max(16, triton.next_power_of_2(head_dim)),
        TILE_Q=blocks.tile_q,
        TILE_K=blocks.tile_k,
        BLOCK=keys.shape[1],
        SEQUENCES=triton.next_power_of_2(len(ends)),
        LAST=triton.next_power_of_2(blocks.tile_q // blocks.tile_k + 2),
        QUANTISED=quantised,
        PRECISION="ieee" if query.dtype == torch.float32 else "tf32",
        **launch_of(blocks.tile_q, blocks.tile_k, head_dim, quantised),
    )  # fmt: skip
    return out


def launch_of(tile_q: int, tile_k: int, head_dim: int, quantised: bool) -> dict[str, int]:
    """Keys of a step, warps and stages. 128 keys a step fill the registers of plain whole heads;
    conversions and lanes that are masked need some, so that half a tile is a step then."""
    is_plain = not quantised and head_dim == triton.next_power_of_2(head_dim)
    step = tile_k if is_plain else min(tile_k, 64)
    stages = 2 if step >= 128 else 3
    return {"STEP": step, "num_warps": 8 if tile_q >= 128 else 4, "num_stages": stages}


def _check(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    table: Tensor,
    row_starts: Tensor,
    ends: Tensor,
    blocks: BlockMask,
    key_scales: Tensor | None,
    value_scales: Tensor | None,
    out: Tensor,
) -> None:
    heads, head_dim = query.shape[1:]
    kv_heads = keys.shape[2]
    sizes = {blocks.tile_q, blocks.tile_k}
    wrong = {
        "the query's dtype is none of float16, bfloat16, float32": query.dtype not in _DTYPES,
        "keys and values differ in shape or dtype": (keys.shape, keys.dtype)
        != (values.shape, values.dtype),
        "out is not like the query": (out.shape, out.dtype) != (query.shape, query.dtype),
        "head_dim differs between query and keys": keys.shape[3] != head_dim,
        "KV heads do not divide the heads": heads % kv_heads != 0,
        "mask heads do not divide the heads": heads % blocks.counts.shape[0] != 0,
        "tiles are not powers of two of at least 16": any(
            size < 16 or size & (size - 1) for size in sizes
        ),
        "row_starts, ends and table disagree on the sequences": (
            not len(row_starts) - 1 == len(ends) == len(table)
        ),
        "an index is not int32": any(
            one.dtype != torch.int32
            for one in (table, row_starts, ends, blocks.counts, blocks.indices)
        ),
        "keys have scales or values have, not both": (key_scales is None) != (value_scales is None),
        "a quantised store has no scales, or a plain one has": (
            (keys.dtype in _DTYPES) != (key_scales is None)
        ),
        "the last dimension is not contiguous": any(
            one.stride(-1) != 1
            for one in (query, keys, values, table, blocks.counts, blocks.indices, out)
        ),
        "scales of keys and of values have different strides": (
            key_scales is not None
            and value_scales is not None
            and key_scales.stride() != value_scales.stride()
        ),
    }
    problems = [text for text, is_wrong in wrong.items() if is_wrong]
    if problems:
        raise InvariantBroken("sparse_prefill: " + "; ".join(problems))
