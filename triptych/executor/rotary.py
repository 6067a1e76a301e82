"""Rotary positions in plain PyTorch: by how much pairs turn, and the turn."""

import torch
from torch import Tensor


def frequencies(theta: float, size: int) -> Tensor:
    """``theta^(-2i / size)`` for i in [0, size / 2): RoPE (arXiv 2104.09864, section 3.2.2)."""
    return 1.0 / (theta ** (torch.arange(0, size, 2, dtype=torch.float32) / size))


def doubled(cosines: Tensor, sines: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines (rows, d / 2) as ``rotate_by`` wants them: (rows, d)."""
    return torch.cat((cosines, cosines), dim=-1), torch.cat((-sines, sines), dim=-1)


def rotate_by(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """``rotate`` in three operations instead of eight, by what ``doubled`` made once for all
    layers: ``x`` times cosines, and its halves changed places times sines."""
    return torch.addcmul(x * cosines, x.roll(x.shape[-1] // 2, -1), sines)


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Turn the pairs ``(x_i, x_{i + d/2})`` of the last dimension d by angles whose cosines and
    sines have d / 2 as last dimension."""
    left, right = x.chunk(2, dim=-1)
    return torch.cat((left * cosines - right * sines, right * cosines + left * sines), dim=-1)
