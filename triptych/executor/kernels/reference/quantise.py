"""Twins of the codes of quantised keys and values.

Rounding and scales are those of ``codec.rows``, bit for bit, so that such blocks become the wire's
without another rounding; but a row of zeros has the scale 1 here and 0 there (both mean zeros).
"""

import torch
from torch import Tensor

LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
SMALLEST = 2.0**-100
"""Rows whose numbers are all smaller lose them."""
TO_E4M3 = 2.0**-120
"""Takes a float32 to where its exponent field counts as that of e4m3 does: 127 - 7."""


def quantise_kv(
    x: Tensor, dtype: torch.dtype, *, out: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """See ``kernels.quantise``."""
    codes, scales = encode(x.float(), dtype)
    if out is None:
        return codes, scales
    out[0].view(torch.uint8).copy_(codes.view(torch.uint8))
    return out[0], out[1].copy_(scales)


def dequantise_kv(
    values: Tensor, scales: Tensor, dtype: torch.dtype, *, out: Tensor | None = None
) -> Tensor:
    """See ``kernels.quantise``."""
    numbers = values.float() * scales[..., None]
    return numbers.to(dtype) if out is None else out.copy_(numbers)


def encode(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Codes and scales of float32 rows."""
    largest = LARGEST[dtype]
    magnitudes = x.view(torch.int32) & 0x7FFF_FFFF
    most = magnitudes.amax(-1).view(torch.float32)
    units = (most / largest).clamp(max=limit(largest)) + (most - most)
    scales = torch.where(most == 0, 1.0, units)
    scaled = x * (largest / most.clamp(min=SMALLEST))[..., None]
    if dtype == torch.int8:
        return scaled.round().to(torch.int8), scales
    bits = (scaled * TO_E4M3).view(torch.int32)
    low = bits & 0x7FFF_FFFF
    low = (low + ((low >> 20) & 1) + 0x7_FFFF) >> 20
    codes = (low & 0x7F) | (torch.where(bits < 0, 0x80, 0))
    return codes.to(torch.uint8).view(torch.float8_e4m3fn), scales


def limit(largest: float) -> float:
    """The largest scale with which ``largest`` is still a float32."""
    most = torch.tensor(torch.finfo(torch.float32).max) / largest
    return float(torch.nextafter(most, torch.tensor(0.0)))
