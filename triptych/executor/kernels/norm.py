"""RMSNorm (arXiv 1910.07467, section 3), alone or behind the addition to the residual stream.

One program a row: what a row becomes depends on no other row. Knows rows, not layers.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from triptych.executor.kernels.arguments import FLOATS, is_dense, require

MAX_WIDTH = 16384
"""A row must fit the registers of one program."""


@triton.jit
def rms_norm_kernel(
    x,
    residual,
    weight,
    out,
    width,
    x_stride,
    residual_stride,
    out_stride,
    eps,
    HAS_RESIDUAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    is_inside = columns < width
    value = tl.load(x + row * x_stride + columns, mask=is_inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        place = residual + row * residual_stride + columns
        stream = tl.load(place, mask=is_inside, other=0.0).to(tl.float32)
        # Normalised is what later layers will read: the sum as it is rounded to be stored.
        total = (stream + value).to(residual.dtype.element_ty)
        tl.store(place, total, mask=is_inside)
        value = total.to(tl.float32)
    mean = tl.sum(value * value, axis=0) / width
    scaled = value * tl.rsqrt(mean + eps)
    scaled *= tl.load(weight + columns, mask=is_inside, other=0.0).to(tl.float32)
    tl.store(out + row * out_stride + columns, scaled.to(out.dtype.element_ty), mask=is_inside)


def rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    *,
    residual: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """``x / sqrt(mean(x^2) + eps) * weight`` of each row, float32 inside, rounded once.

    ``x`` is (tokens, width) of float32, float16 or bfloat16 with any row stride, ``weight``
    (width,). With ``residual`` of the shape and dtype of ``x``, ``residual += x`` comes first and
    the sum is normalised. ``out`` may be ``x``. Raises InvariantBroken if shapes do not fit."""
    require(x.ndim == 2 and x.dtype in FLOATS and is_dense(x), "x is (tokens, width) of floats")
    tokens, width = x.shape
    require(0 < width <= MAX_WIDTH, "a norm's width is 1 to 16384")
    require(weight.shape == (width,) and is_dense(weight), "a norm's weight is (width,)")
    out = torch.empty_like(x) if out is None else out
    for other in (out, x if residual is None else residual):
        require(other.shape == x.shape and is_dense(other), "rows of a norm have one shape")
        require(other.dtype == x.dtype, "rows of a norm have one dtype")
    if tokens:
        block = triton.next_power_of_2(width)
        stream = x if residual is None else residual
        rms_norm_kernel[(tokens,)](
            x, stream, weight, out, width, x.stride(0), stream.stride(0), out.stride(0), eps,
            HAS_RESIDUAL=residual is not None, BLOCK=block, num_warps=warps(block),
        )  # fmt: skip
    return out


def warps(block: int) -> int:
    """Warps of a program over a row: 16 numbers a thread, so that every load is of 16 bytes and
    several are under way."""
    return min(16, max(1, block // 512))
