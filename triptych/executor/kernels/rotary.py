"""Rotary positions (arXiv 2104.09864, section 3.4.2), and what follows at once: keys and values
written to their blocks. One kernel serves 1D, 2D and M-RoPE (arXiv 2409.12191, section 2.1): they
differ in the angles only. A token's numbers depend on that token only.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from triptych.executor.kernels.arguments import FLOATS, is_dense, require
from triptych.executor.kernels.quantise import (
    KINDS,
    UNFUSED,
    codes_of,
    largest_magnitude,
    raw,
    scales_of,
)

HEADS = 8
"""Heads of one program, at most."""


@triton.jit
def turned(left, right, cosines, sines):
    """Pairs turned by their angles."""
    return left * cosines - right * sines, right * cosines + left * sines


@triton.jit
def write(
    store,
    scales,
    place,
    scale_place,
    left,
    right,
    is_inside,
    is_head,
    column,
    half,
    KIND: tl.constexpr,
):
    """Both halves of heads to a block, as they are or as codes."""
    if KIND:
        bits = tl.maximum(largest_magnitude(left), largest_magnitude(right))
        units, factors = scales_of(bits, KIND)
        first = codes_of(left * factors[:, None], KIND)
        second = codes_of(right * factors[:, None], KIND)
        tl.store(scales + scale_place, units, mask=is_head)
    else:
        first = left.to(store.dtype.element_ty)
        second = right.to(store.dtype.element_ty)
    spot = store + place[:, None] + column[None, :]
    tl.store(spot, first, mask=is_inside)
    tl.store(spot + half, second, mask=is_inside)


@triton.jit
def rotate_and_write_kernel(
    qkv, cosines, sines, out, keys, values, slots, key_scales, value_scales,
    heads, kv_heads, block_size, half, qkv_stride, angle_stride, out_stride,
    key_block, key_row, key_head, value_block, value_row, value_head, scale_block, scale_row,
    KIND: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """HEADS query heads of a token, or (last along axis 1) HEADS of its keys and values."""
    token = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * HEADS
    column = tl.arange(0, HALF)
    is_column = column < half
    angles = token * angle_stride + column
    cosine = tl.load(cosines + angles, mask=is_column, other=0.0).to(tl.float32)[None, :]
    sine = tl.load(sines + angles, mask=is_column, other=0.0).to(tl.float32)[None, :]
    head = first + tl.arange(0, HEADS)
    source = qkv + token * qkv_stride + column[None, :]
    query_programs = tl.cdiv(heads, HEADS)
    if tl.program_id(1) < query_programs:
        is_inside = (head < heads)[:, None] & is_column[None, :]
        place = source + (head * 2 * half)[:, None]
        left = tl.load(place, mask=is_inside, other=0.0).to(tl.float32)
        right = tl.load(place + half, mask=is_inside, other=0.0).to(tl.float32)
        left, right = turned(left, right, cosine, sine)
        spot = out + token * out_stride + (head * 2 * half)[:, None] + column[None, :]
        tl.store(spot, left.to(out.dtype.element_ty), mask=is_inside)
        tl.store(spot + half, right.to(out.dtype.element_ty), mask=is_inside)
    else:
        slot = tl.load(slots + token).to(tl.int64)
        head -= query_programs * HEADS
        is_head = (head < kv_heads) & (slot >= 0)
        is_inside = is_head[:, None] & is_column[None, :]
        block, row = slot // block_size, slot % block_size
        scale_place = block * scale_block + row * scale_row + head
        place = source + ((heads + head) * 2 * half)[:, None]
        left = tl.load(place, mask=is_inside, other=0.0).to(tl.float32)
        right = tl.load(place + half, mask=is_inside, other=0.0).to(tl.float32)
        left, right = turned(left, right, cosine, sine)
        target = block * key_block + row * key_row + head * key_head
        write(
            keys, key_scales, target, scale_place, left, right, is_inside, is_head, column, half,
            KIND,
        )  # fmt: skip
        place += kv_heads * 2 * half
        left = tl.load(place, mask=is_inside, other=0.0).to(tl.float32)
        right = tl.load(place + half, mask=is_inside, other=0.0).to(tl.float32)
        target = block * value_block + row * value_row + head * value_head
        write(
            values, value_scales, target, scale_place, left, right, is_inside, is_head, column,
            half, KIND,
        )  # fmt: skip


def rotate_and_write(
    qkv: Tensor,
    cosines: Tensor,
    sines: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    *,
    key_scales: Tensor | None = None,
    value_scales: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Turn queries and keys of ``qkv``, write keys and values to ``slots``; returns the turned
    queries (tokens, heads, head_dim), contiguous, in ``out`` if given.

    ``qkv`` (tokens, (heads + 2 * kv_heads) * head_dim): queries, keys, values. ``cosines`` and
    ``sines`` (tokens, head_dim / 2), any floats. ``keys`` and ``values`` (blocks, block_size,
    kv_heads, head_dim) with any strides but the last. ``slots`` int32 or int64 (tokens,):
    ``block * block_size + offset``, distinct; a token with a negative one writes nothing. With
    float32 ``key_scales`` and ``value_scales`` (blocks, block_size, kv_heads), of equal strides,
    keys and values are codes as in ``kernels.quantise``, made before any other rounding. Float32
    inside. Slots are not checked: they are on the device. Raises InvariantBroken if shapes do not
    fit."""
    tokens, heads = _check(qkv, cosines, sines, keys, values, slots)
    _, block_size, kv_heads, size = keys.shape
    kind = _kind(keys, values, key_scales, value_scales)
    out = qkv.new_empty(tokens, heads, size) if out is None else out
    require(out.shape == (tokens, heads, size) and out.is_contiguous(), "queries are contiguous")
    if tokens:
        scales = (key_scales, value_scales) if kind else (cosines, cosines)
        strides = key_scales.stride() if key_scales is not None else (0, 0, 1)
        programs = triton.cdiv(heads, HEADS) + triton.cdiv(kv_heads, HEADS)
        rotate_and_write_kernel[(tokens, programs)](
            qkv, cosines, sines, out, raw(keys), raw(values), slots, *scales,
            heads, kv_heads, block_size, size // 2,
            qkv.stride(0), cosines.stride(0), out.stride(0),
            *keys.stride()[:3], *values.stride()[:3], *strides[:2],
            KIND=kind, HEADS=HEADS, HALF=triton.next_power_of_2(size // 2), num_warps=2,
            **UNFUSED,
        )  # fmt: skip
    return out


def _check(
    qkv: Tensor, cosines: Tensor, sines: Tensor, keys: Tensor, values: Tensor, slots: Tensor
) -> tuple[int, int]:
    """Tokens and query heads."""
    require(keys.ndim == 4 and keys.shape == values.shape, "keys and values have one shape")
    require(is_dense(keys) and is_dense(values), "numbers of a head lie side by side")
    kv_heads, size = keys.shape[2:]
    require(qkv.ndim == 2 and qkv.dtype in FLOATS and is_dense(qkv), "qkv is (tokens, sizes)")
    tokens, width = qkv.shape
    heads = width // size - 2 * kv_heads
    require(heads > 0 and width % size == 0 and size % 2 == 0, "qkv holds whole even heads")
    require(cosines.shape == sines.shape == (tokens, size // 2), "an angle for each pair")
    require(is_dense(cosines) and cosines.stride() == sines.stride(), "angles are laid out alike")
    require(slots.shape == (tokens,) and slots.is_contiguous(), "a slot for each token")
    require(slots.dtype in (torch.int32, torch.int64), "slots are int32 or int64")
    return tokens, heads


def _kind(
    keys: Tensor, values: Tensor, key_scales: Tensor | None, value_scales: Tensor | None
) -> int:
    """Which codes are written; 0: none, but numbers."""
    require(keys.dtype == values.dtype, "keys and values have one dtype")
    kind = KINDS.get(keys.dtype, 0)
    if key_scales is None or value_scales is None:
        require(not kind and keys.dtype in FLOATS, "codes have scales")
        require(key_scales is value_scales, "keys and values both have scales, or none")
        return 0
    require(bool(kind), "scales belong to codes")
    require(key_scales.shape == value_scales.shape == keys.shape[:3], "a scale for each head")
    require(key_scales.dtype == value_scales.dtype == torch.float32, "scales are float32")
    require(key_scales.stride() == value_scales.stride(), "scales are laid out alike")
    require(is_dense(key_scales), "scales of a token lie side by side")
    return kind


@triton.jit
def rotate_kernel(
    qkv,
    cosines,
    sines,
    heads,
    half,
    token_stride,
    plane_stride,
    head_stride,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
):
    """HEADS heads of a token, of queries or of keys."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, HALF)
    is_column = column < half
    angles = token * half + column
    cosine = tl.load(cosines + angles, mask=is_column, other=0.0).to(tl.float32)[None, :]
    sine = tl.load(sines + angles, mask=is_column, other=0.0).to(tl.float32)[None, :]
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    is_inside = (head < heads)[:, None] & is_column[None, :]
    place = qkv + token * token_stride + tl.program_id(2) * plane_stride
    place += (head * head_stride)[:, None] + column[None, :]
    left = tl.load(place, mask=is_inside, other=0.0).to(tl.float32)
    right = tl.load(place + half, mask=is_inside, other=0.0).to(tl.float32)
    left, right = turned(left, right, cosine, sine)
    tl.store(place, left.to(qkv.dtype.element_ty), mask=is_inside)
    tl.store(place + half, right.to(qkv.dtype.element_ty), mask=is_inside)


def rotate_(qkv: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Turn the first two planes of ``qkv`` (tokens, 3, heads, head_dim) in place; returns it.

    For vision towers: ``cosines`` and ``sines`` are contiguous (tokens, head_dim / 2), float32
    inside whatever ``qkv`` is. Raises InvariantBroken if shapes do not fit."""
    require(qkv.ndim == 4 and qkv.shape[1] == 3, "qkv is (tokens, 3, heads, head_dim)")
    require(qkv.dtype in FLOATS and is_dense(qkv), "numbers of a head lie side by side")
    tokens, _, heads, size = qkv.shape
    require(size % 2 == 0, "a head has whole pairs")
    require(cosines.shape == sines.shape == (tokens, size // 2), "an angle for each pair")
    require(cosines.is_contiguous() and sines.is_contiguous(), "angles are contiguous")
    if tokens:
        rotate_kernel[(tokens, triton.cdiv(heads, HEADS), 2)](
            qkv, cosines, sines, heads, size // 2, *qkv.stride()[:3],
            HEADS=HEADS, HALF=triton.next_power_of_2(size // 2), num_warps=2, **UNFUSED,
        )  # fmt: skip
    return qkv


@triton.jit
def mrope_angles_kernel(
    positions,
    frequencies,
    axes,
    cosines,
    sines,
    tokens,
    half,
    position_stride,
    ROWS: tl.constexpr,
    HALF: tl.constexpr,
):
    """ROWS tokens."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, HALF)
    is_column = column < half
    is_inside = (row < tokens)[:, None] & is_column[None, :]
    axis = tl.load(axes + column, mask=is_column, other=0).to(tl.int64)
    frequency = tl.load(frequencies + column, mask=is_column, other=0.0)
    place = positions + axis[None, :] * position_stride + row[:, None]
    angle = tl.load(place, mask=is_inside, other=0).to(tl.float32) * frequency[None, :]
    place = row[:, None] * half + column[None, :]
    tl.store(cosines + place, tl.cos(angle), mask=is_inside)
    tl.store(sines + place, tl.sin(angle), mask=is_inside)


def mrope_angles(positions: Tensor, frequencies: Tensor, axes: Tensor) -> tuple[Tensor, Tensor]:
    """Float32 cosines and sines (tokens, half) of M-RoPE, once a step for all layers.

    ``positions`` int32 or int64 (3, tokens): time, height, width; ``frequencies`` float32 (half,)
    in radians a position; ``axes`` integers (half,): which of the three turns a pair. Raises
    InvariantBroken if shapes do not fit."""
    require(positions.ndim == 2 and positions.shape[0] == 3, "positions are (3, tokens)")
    require(is_dense(positions) and not positions.is_floating_point(), "positions are integers")
    require(frequencies.dtype == torch.float32 and frequencies.ndim == 1, "frequencies float32")
    require(axes.shape == frequencies.shape, "an axis for each frequency")
    require(axes.is_contiguous() and frequencies.is_contiguous(), "frequencies are contiguous")
    tokens, half = positions.shape[1], len(frequencies)
    cosines = frequencies.new_empty(tokens, half)
    sines = torch.empty_like(cosines)
    if tokens:
        mrope_angles_kernel[(triton.cdiv(tokens, 8),)](
            positions, frequencies, axes, cosines, sines, tokens, half, positions.stride(0),
            ROWS=8, HALF=triton.next_power_of_2(half), num_warps=4,
        )  # fmt: skip
    return cosines, sines
