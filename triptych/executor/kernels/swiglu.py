"""The gate of a SwiGLU layer (arXiv 2002.05202, section 2). Knows rows of two halves."""

import triton
import triton.language as tl
from torch import Tensor

from triptych.executor.kernels.arguments import FLOATS, is_dense, require

BLOCK = 1024


@triton.jit
def silu_mul_kernel(gate_up, out, inner, row_stride, out_stride, BLOCK: tl.constexpr):
    """A part of one row."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_inside = columns < inner
    place = gate_up + row * row_stride + columns
    gate = tl.load(place, mask=is_inside, other=0.0).to(tl.float32)
    up = tl.load(place + inner, mask=is_inside, other=0.0).to(tl.float32)
    value = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out + row * out_stride + columns, value.to(out.dtype.element_ty), mask=is_inside)


def silu_mul(gate_up: Tensor, out: Tensor | None = None) -> Tensor:
    """``silu(gate) * up`` of ``gate_up`` (tokens, 2 * inner), gates first: (tokens, inner).

    Float32 inside, rounded once. Each number depends on its own gate and up only. Raises
    InvariantBroken if shapes do not fit."""
    require(gate_up.ndim == 2 and gate_up.dtype in FLOATS, "gate_up is (tokens, 2 * inner)")
    require(gate_up.shape[1] % 2 == 0 and is_dense(gate_up), "gate and up are equally wide")
    tokens, inner = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty(tokens, inner) if out is None else out
    require(out.shape == (tokens, inner) and is_dense(out), "out is (tokens, inner)")
    require(out.dtype == gate_up.dtype, "out has the dtype of gate_up")
    if out.numel():
        silu_mul_kernel[(tokens, triton.cdiv(inner, BLOCK))](
            gate_up, out, inner, gate_up.stride(0), out.stride(0), BLOCK=BLOCK, num_warps=4
        )
    return out
