"""Rows of numbers as 8-bit codes with one float32 scale a row: INT8 and FP8 (e4m3fn).

``a`` is the largest magnitude in a row, ``x`` one of its numbers, ``y`` what comes back in float32:

    int8   |x - y| <= a / 253                  codes -127..127, uniform; scale = a / 127
    fp8    |x - y| <= max(|x| / 16.9, a / 458_000)    4 bits of exponent, 3 of mantissa (e4m3fn);
                                               scale = a / 448

FP8 after Micikevicius et al., "FP8 Formats for Deep Learning" (2022), section 3. Both bounds have a
floor of 2**-100. A row with a NaN or an infinity comes back as NaN throughout: what was broken
stays visibly so. Rounding of the final dtype comes on top.
"""

from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from triptych.codec.dtypes import Array, Floats, narrow, tiles, widen

Codes = NDArray[np.uint8]
SMALLEST = np.float32(2.0**-100)
"""Rows whose numbers are all smaller lose them."""


class Rows(Protocol):
    """One way to write rows: the last axis of an array, before which at least one other stands."""

    name: str

    def encode(self, values: Array, dtype: str, codes: Codes, scales: Floats) -> None:
        """Write codes (shape of ``values``) and scales (one axis less) of ``values``."""
        ...

    def decode(self, codes: Codes, scales: Floats, values: Array, dtype: str) -> None:
        """Write the numbers that ``codes`` and ``scales`` mean to ``values``, in ``dtype``."""
        ...


class Int8:
    """Symmetric INT8, codes in two's complement."""

    name = "int8"

    def encode(self, values: Array, dtype: str, codes: Codes, scales: Floats) -> None:
        """See ``Rows``."""
        signed = codes.view(np.int8)
        with np.errstate(invalid="ignore", over="ignore"):
            for index in tiles(values.shape):
                scaled = _scale(widen(values[index], dtype), 127, scales[index])
                np.rint(scaled, out=scaled)
                np.copyto(signed[index], scaled, casting="unsafe")

    def decode(self, codes: Codes, scales: Floats, values: Array, dtype: str) -> None:
        """See ``Rows``."""
        signed = codes.view(np.int8)
        for index in tiles(codes.shape):
            factors = scales[index][..., None]
            if dtype == "float32":
                np.multiply(signed[index], factors, out=values[index])
            else:
                narrow(np.multiply(signed[index], factors), values[index], dtype)


class Fp8:
    """FP8 e4m3fn: no infinities, 448 is the largest number, the smallest 2**-9."""

    name = "fp8"
    _EXPONENTS: ClassVar[np.float32] = np.float32(2.0**-120)
    """Takes a float32 to where its own exponent field counts as that of e4m3 does, subnormal
    numbers included: 127 - 7."""

    def encode(self, values: Array, dtype: str, codes: Codes, scales: Floats) -> None:
        """See ``Rows``."""
        with np.errstate(invalid="ignore", over="ignore", under="ignore"):
            for index in tiles(values.shape):
                scaled = _scale(widen(values[index], dtype), 448, scales[index])
                scaled *= self._EXPONENTS
                bits = scaled.view(np.uint32)
                signs = bits >> 24
                signs &= 0x80
                bits &= 0x7FFF_FFFF
                bits += (bits >> 20) & 1
                bits += 0x7_FFFF
                bits >>= 20
                bits |= signs
                np.copyto(codes[index], bits, casting="unsafe")

    def decode(self, codes: Codes, scales: Floats, values: Array, dtype: str) -> None:
        """See ``Rows``."""
        with np.errstate(invalid="ignore"):
            for index in tiles(codes.shape):
                wide: Floats = np.empty(codes[index].shape, np.float32)
                np.take(_E4M3, codes[index], out=wide, mode="clip")
                factors = scales[index][..., None]
                if dtype == "float32":
                    np.multiply(wide, factors, out=values[index])
                else:
                    wide *= factors
                    narrow(wide, values[index], dtype)


def _scale(values: Floats, largest: int, scales: Floats) -> Floats:
    """``values`` in units in which each row's largest magnitude is ``largest``; writes what one
    unit is, or NaN where the row has no largest magnitude."""
    # As integers, magnitudes compare as they do as numbers, and NaN above infinity.
    magnitudes = values.view(np.uint32) & 0x7FFF_FFFF
    most = np.maximum.reduce(magnitudes.view(np.int32), axis=-1).view(np.float32)
    limit = np.nextafter(np.finfo(np.float32).max / np.float32(largest), np.float32(0))
    unit = np.minimum(most / np.float32(largest), limit)
    unit += most - most
    scales[...] = unit
    scaled: Floats = magnitudes.view(np.float32)
    np.multiply(values, (np.float32(largest) / np.maximum(most, SMALLEST))[..., None], out=scaled)
    return scaled


def _e4m3() -> Floats:
    """The number that each code means."""
    codes = np.arange(128)
    exponents, mantissas = codes >> 3, codes & 7
    normal = (8 + mantissas) * 2.0 ** (exponents - 10)
    positive = np.where(exponents == 0, mantissas * 2.0**-9, normal)
    positive[127] = np.nan
    return np.concatenate([positive, -positive]).astype(np.float32)


_E4M3 = _e4m3()
