"""Numbers between the dtypes of blocks: views of bytes as arrays, and rounding to nearest even.

numpy has no bfloat16: it is kept as the upper 16 bits of a float32, in uint16. Work goes tile by
tile, so that what is needed beside source and target stays in a processor's cache. Knows arrays and
dtypes, not what an axis means.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Floats = NDArray[np.float32]

STORAGE: dict[str, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
    "uint8": np.dtype("u1"),
    "int8": np.dtype("u1"),
    "fp8": np.dtype("u1"),
}
"""How an array holds numbers of a dtype of ``Layout``."""

TILE = 1 << 15
"""Numbers worked on at a time: 128 KiB of float32."""


def tiles(shape: Sequence[int], most: int = TILE) -> Iterator[tuple[int | slice, ...]]:
    """Indices that cut an array of ``shape`` into parts of at most ``most`` numbers, in order;
    more only where a single row of the last axis is longer."""
    axis = max(len(shape) - 2, 0)
    while axis and math.prod(shape[axis:]) <= most:
        axis -= 1
    step = max(1, most // max(1, math.prod(shape[axis + 1 :])))
    for outer in np.ndindex(*shape[:axis]):
        for at in range(0, shape[axis], step):
            yield (*outer, slice(at, at + step))


def widen(source: Array, dtype: str, wide: Floats | None = None) -> Floats:
    """``source``, which holds ``dtype``, as float32: in ``wide`` if given, else in an array of its
    own, or in ``source`` itself if it is that already."""
    if wide is None:
        if dtype == "float32":
            return source
        wide = np.empty(source.shape, np.float32)
    if dtype == "bfloat16":
        bits = wide.view(np.uint32)
        bits[...] = source
        bits <<= 16
    else:
        wide[...] = source
    return wide


def narrow(source: Floats, target: Array, dtype: str) -> None:
    """Write float32 numbers to ``target``, which holds ``dtype``, rounded to nearest even.

    What is beyond the range of ``dtype`` becomes infinite; NaN stays NaN.
    """
    if dtype == "bfloat16":
        bits = source.view(np.uint32) if source.flags.c_contiguous else source.copy().view("<u4")
        rounded = (bits >> 16) & 1
        rounded += 0x7FFF
        rounded += bits
        rounded >>= 16
        broken = np.isnan(source)
        if broken.any():  # its bits would be carried into the sign
            rounded[broken] = 0x7FC0
        np.copyto(target, rounded, casting="unsafe")
    else:
        with np.errstate(over="ignore"):
            np.copyto(target, source, casting="unsafe")


def convert(source: Array, source_dtype: str, target: Array, target_dtype: str) -> None:
    """Copy ``source`` to ``target``, an array of the same shape, from dtype to dtype.

    Without a change of dtype it is one copy of bytes, NaN and all.
    """
    if source_dtype == target_dtype:
        np.copyto(target, source)
        return
    for index in tiles(source.shape):
        if target_dtype == "float32":
            widen(source[index], source_dtype, target[index])
        else:
            narrow(widen(source[index], source_dtype), target[index], target_dtype)
