"""Twins of norms, gates and rotary positions. Arithmetic is in float32, rounded once at the end."""

import torch
from torch import Tensor

from triptych.executor.kernels.reference.quantise import encode


def rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    *,
    residual: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """See ``kernels.norm``."""
    if residual is not None:
        residual.copy_(residual.float() + x.float())
        x = residual
    wide = x.float()
    scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight.float()
    return scaled.to(x.dtype) if out is None else out.copy_(scaled)


def silu_mul(gate_up: Tensor, out: Tensor | None = None) -> Tensor:
    """See ``kernels.swiglu``."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    value = gate / (1 + torch.exp(-gate)) * up
    return value.to(gate_up.dtype) if out is None else out.copy_(value)


def turn(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """The pairs ``(x_i, x_{i + d/2})`` of ``x`` (tokens, heads, d) turned, in float32."""
    left, right = x.float().chunk(2, dim=-1)
    cosines, sines = cosines.float()[:, None], sines.float()[:, None]
    return torch.cat((left * cosines - right * sines, right * cosines + left * sines), dim=-1)


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
    """See ``kernels.rotary``."""
    _, block_size, kv_heads, size = keys.shape
    parts = qkv.unflatten(1, (-1, size))
    heads = parts.shape[1] - 2 * kv_heads
    turned = turn(parts[:, : heads + kv_heads], cosines, sines)
    fresh = ((keys, key_scales, turned[:, heads:]), (values, value_scales, parts[:, -kv_heads:]))
    taken = slots >= 0
    blocks, offsets = slots[taken] // block_size, slots[taken] % block_size
    for store, scales, numbers in fresh:
        rows = numbers[taken].float()
        if scales is None:
            store[blocks, offsets] = rows.to(store.dtype)
        else:
            codes, units = encode(rows, store.dtype)
            store.view(torch.uint8)[blocks, offsets] = codes.view(torch.uint8)
            scales[blocks, offsets] = units
    query = turned[:, :heads]
    return query.to(qkv.dtype) if out is None else out.copy_(query)


def rotate_(qkv: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """See ``kernels.rotary``."""
    for plane in (0, 1):
        qkv[:, plane] = turn(qkv[:, plane], cosines, sines).to(qkv.dtype)
    return qkv


def mrope_angles(positions: Tensor, frequencies: Tensor, axes: Tensor) -> tuple[Tensor, Tensor]:
    """See ``kernels.rotary``."""
    angles = positions.float().index_select(0, axes.long()).t() * frequencies
    return angles.cos(), angles.sin()
