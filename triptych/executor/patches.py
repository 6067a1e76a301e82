"""A picture's pixels as rows for a vision tower: normalised, and cut square by square.

Plain PyTorch on any device, from the bytes of the picture: those are what is sent to a device.
"""

from functools import lru_cache

import torch
from torch import Tensor

from triptych.inputs.model_card import ImageGeometry


def cut(image: Tensor, geometry: ImageGeometry) -> Tensor:
    """Of ``image``, uint8 (height, width, 3): float32 (patches, channels * frames * patch * patch),
    scaled to [0, 1] and normalised, in the processor's order; a picture is repeated to fill a
    temporal patch."""
    size, merge = geometry.patch_size, geometry.merge_size
    scale, shift = _line(geometry, image.device)
    normal = image.float().mul_(scale).add_(shift)
    rows, columns = image.shape[0] // geometry.factor, image.shape[1] // geometry.factor
    parts = normal.view(rows, merge, size, columns, merge, size, 3).permute(0, 3, 1, 4, 6, 2, 5)
    frames = parts[:, :, :, :, :, None].expand(*(-1,) * 5, geometry.temporal_patch_size, -1, -1)
    return frames.reshape(rows * columns * merge**2, -1)


@lru_cache(maxsize=8)
def values(geometry: ImageGeometry) -> Tensor:
    """float32 (3, 256): what ``cut`` makes of each byte of a channel."""
    scale, shift = _line(geometry, torch.device("cpu"))
    return torch.arange(256).float()[:, None].mul(scale).add_(shift).t().contiguous()


@lru_cache(maxsize=8)
def _line(geometry: ImageGeometry, device: torch.device) -> tuple[Tensor, Tensor]:
    """By what bytes of the three channels are multiplied, and what is added then."""
    std = torch.tensor(geometry.std)
    return (1 / (255 * std)).to(device), (-torch.tensor(geometry.mean) / std).to(device)
