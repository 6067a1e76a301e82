"""Numbers that are awkward: all of float32, rows of one magnitude, rows that are broken."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from triptych.codec.dtypes import narrow, widen

DTYPES = ("float32", "float16", "bfloat16")
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
SHAPES = arrays.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=9)


def rows(elements=FINITE):
    """Float32 arrays whose last axis is a row, each row scaled by a power of two of its own."""
    return st.builds(
        scaled,
        arrays.arrays(np.float32, SHAPES, elements=elements),
        st.integers(-140, 20),
    )


def scaled(array, exponent):
    with np.errstate(all="ignore"):
        result = np.ldexp(array, np.arange(array.shape[-2])[:, None] % 3 * exponent)
    return np.clip(result, -(2.0**127), 2.0**127).astype(np.float32)


def stored(array, dtype):
    """The nearest numbers of ``dtype``, as blocks store them."""
    storage = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}[dtype]
    target = np.empty(array.shape, storage)
    narrow(np.ascontiguousarray(array), target, dtype)
    return target


def read(array, dtype):
    """As float64, to compute with exactly."""
    return widen(array, dtype).astype(np.float64)
