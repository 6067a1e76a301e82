"""Keys and values as 8-bit codes with one float32 scale a token and head, and back.

int8 is symmetric; float8 is e4m3fn (Micikevicius et al., "FP8 Formats for Deep Learning", 2022,
section 3). Codes are made of bits, not by a conversion instruction, so that they are the same on
every device and those of ``codec.rows``. A row's codes depend on that row only.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from triptych.executor.kernels.arguments import FLOATS, is_dense, require
from triptych.executor.kernels.reference import quantise as reference

SMALLEST = tl.constexpr(reference.SMALLEST)
TO_E4M3 = tl.constexpr(reference.TO_E4M3)
FROM_E4M3 = tl.constexpr(1 / reference.TO_E4M3)
LIMIT_INT8 = tl.constexpr(reference.limit(127.0))
LIMIT_FP8 = tl.constexpr(reference.limit(448.0))
NO_FRACTION = tl.constexpr(1.5 * 2**23)
"""Added to a float32, leaves its sum no room for fractions."""
KINDS = {torch.int8: 1, torch.float8_e4m3fn: 2}
ROWS = 16
UNFUSED = {"enable_fp_fusion": False}
"""A fused multiply-add would round once where the twin and the wire format round twice."""


@triton.jit
def largest_magnitude(x):
    """Of each row of ``x``, as bits: magnitudes compare as integers as they do as numbers, and NaN
    above infinity, so that a broken row is known."""
    return tl.max(x.to(tl.int32, bitcast=True) & 0x7FFFFFFF, axis=1)


@triton.jit
def scales_of(most_bits, KIND: tl.constexpr):
    """What one unit of each row's codes is, and what brings a number to such units."""
    largest: tl.constexpr = 127.0 if KIND == 1 else 448.0
    limit: tl.constexpr = LIMIT_INT8 if KIND == 1 else LIMIT_FP8
    most = most_bits.to(tl.float32, bitcast=True)
    units = tl.minimum(tl.div_rn(most, tl.full(most.shape, largest, tl.float32)), limit)
    units += most - most  # NaN where the row has no largest magnitude
    factors = tl.div_rn(
        tl.full(most.shape, largest, tl.float32),
        tl.maximum(most, SMALLEST),
    )
    return tl.where(most == 0.0, 1.0, units), factors


@triton.jit
def codes_of(scaled, KIND: tl.constexpr):
    """Numbers in units as codes, rounded to nearest even."""
    if KIND == 1:
        codes = ((scaled + NO_FRACTION) - NO_FRACTION).to(tl.int8)
    else:
        bits = (scaled * TO_E4M3).to(tl.int32, bitcast=True)
        low = bits & 0x7FFFFFFF
        low = (low + ((low >> 20) & 1) + 0x7FFFF) >> 20
        codes = ((low & 0x7F) | ((bits >> 24) & 0x80)).to(tl.uint8)
    return codes


@triton.jit
def numbers_of(codes, KIND: tl.constexpr):
    """Codes as float32 numbers in units."""
    if KIND == 1:
        numbers = codes.to(tl.float32)
    else:
        wide = codes.to(tl.int32)
        bits = ((wide & 0x80) << 24) | ((wide & 0x7F) << 20)
        numbers = bits.to(tl.float32, bitcast=True) * FROM_E4M3
    return numbers


@triton.jit
def quantise_kernel(
    x,
    codes,
    scales,
    rows,
    heads,
    size,
    x_token,
    x_head,
    KIND: tl.constexpr,
    ROWS: tl.constexpr,
    SIZE: tl.constexpr,
):
    """ROWS rows of (token, head)."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, SIZE)
    is_row = row < rows
    is_inside = is_row[:, None] & (column < size)[None, :]
    place = (row // heads) * x_token + (row % heads) * x_head
    value = tl.load(x + place[:, None] + column[None, :], mask=is_inside, other=0.0)
    value = value.to(tl.float32)
    units, factors = scales_of(largest_magnitude(value), KIND)
    code = codes_of(value * factors[:, None], KIND)
    tl.store(codes + row[:, None] * size + column[None, :], code, mask=is_inside)
    tl.store(scales + row, units, mask=is_row)


@triton.jit
def dequantise_kernel(
    codes,
    scales,
    out,
    rows,
    size,
    KIND: tl.constexpr,
    ROWS: tl.constexpr,
    SIZE: tl.constexpr,
):
    """ROWS rows of (token, head)."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, SIZE)
    is_row = row < rows
    is_inside = is_row[:, None] & (column < size)[None, :]
    place = row[:, None] * size + column[None, :]
    code = tl.load(codes + place, mask=is_inside, other=0)
    unit = tl.load(scales + row, mask=is_row, other=0.0)
    value = numbers_of(code, KIND) * unit[:, None]
    tl.store(out + place, value.to(out.dtype.element_ty), mask=is_inside)


def quantise_kv(
    x: Tensor, dtype: torch.dtype, *, out: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """``x`` (tokens, heads, head_dim) of floats as codes of int8 or float8_e4m3fn, of its shape,
    and float32 scales (tokens, heads); ``x`` is about ``codes * scales``.

    The scale is a row's largest magnitude / 127 or / 448, and 1 for a row of zeros. Rows smaller
    than 2**-100 throughout lose their numbers. A row with NaN or infinity has the scale NaN.
    ``out`` are contiguous tensors for both. Raises InvariantBroken if shapes do not fit."""
    require(x.ndim == 3 and x.dtype in FLOATS and is_dense(x), "x is (tokens, heads, head_dim)")
    require(dtype in KINDS, "codes are int8 or float8_e4m3fn")
    tokens, heads, size = x.shape
    if out is None:
        out = x.new_empty(x.shape, dtype=dtype), x.new_empty(x.shape[:2], dtype=torch.float32)
    codes, scales = out
    require(codes.shape == x.shape and codes.is_contiguous(), "codes have the shape of x")
    require(codes.dtype == dtype, "codes have the dtype asked for")
    require(scales.shape == x.shape[:2] and scales.is_contiguous(), "scales are (tokens, heads)")
    require(scales.dtype == torch.float32, "scales are float32")
    if x.numel():
        quantise_kernel[(triton.cdiv(tokens * heads, ROWS),)](
            x, raw(codes), scales, tokens * heads, heads, size, x.stride(0), x.stride(1),
            KIND=KINDS[dtype], ROWS=ROWS, SIZE=triton.next_power_of_2(size), num_warps=4,
            **UNFUSED,
        )  # fmt: skip
    return out


def dequantise_kv(
    values: Tensor, scales: Tensor, dtype: torch.dtype, *, out: Tensor | None = None
) -> Tensor:
    """``values * scales`` in ``dtype``: the way back from ``quantise_kv``.

    ``values`` (tokens, heads, head_dim) of int8 or float8_e4m3fn, ``scales`` float32
    (tokens, heads), all contiguous. Raises InvariantBroken if shapes do not fit."""
    require(values.ndim == 3 and values.is_contiguous(), "codes are (tokens, heads, head_dim)")
    require(values.dtype in KINDS and dtype in FLOATS, "codes are int8 or float8_e4m3fn")
    require(scales.shape == values.shape[:2] and scales.is_contiguous(), "a scale for each head")
    require(scales.dtype == torch.float32, "scales are float32")
    out = values.new_empty(values.shape, dtype=dtype) if out is None else out
    require(out.shape == values.shape and out.is_contiguous(), "out has the shape of the codes")
    tokens, heads, size = values.shape
    if values.numel():
        dequantise_kernel[(triton.cdiv(tokens * heads, ROWS),)](
            raw(values), scales, out, tokens * heads, size,
            KIND=KINDS[values.dtype], ROWS=ROWS, SIZE=triton.next_power_of_2(size), num_warps=4,
            **UNFUSED,
        )  # fmt: skip
    return out


def raw(codes: Tensor) -> Tensor:
    """Codes as kernels see them: float8 is written as bytes."""
    return codes.view(torch.uint8) if codes.dtype == torch.float8_e4m3fn else codes
