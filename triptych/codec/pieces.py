"""Numbers of blocks where they lie: as they are, or as rows of codes with scales.

A *piece* is what one block holds of some consecutive layers. Quantised, it is by itself: the scales
of its rows, then their codes, little endian, filled up to a multiple of four bytes::

    0          4 * rows             4 * rows + rows * row       scaled_bytes
    |- scales -|------- codes ------|--------- unused ----------|

Knows arrays (axes as in ``grid``), not what is done with them.
"""

from typing import Any, Protocol

import numpy as np

from triptych.codec.dtypes import Array, Floats, convert
from triptych.codec.grid import Grid
from triptych.codec.rows import Codes, Rows

Index = tuple[Any, ...]
"""What selects a part of an array by slices and numbers, up to the axis of heads."""


class Pieces(Protocol):
    """Pieces of blocks of one shape, to be read and written part by part."""

    def read(self, index: Index, target: Array, dtype: str) -> None:
        """Write what stands at ``index`` to ``target``, an array of the same shape that holds
        ``dtype``."""
        ...

    def write(self, index: Index, source: Array, dtype: str) -> None:
        """The way back."""
        ...


class PlainPieces:
    """Numbers as they lie in blocks; ``array`` may be any view of a store."""

    def __init__(self, array: Array, dtype: str) -> None:
        self._array = array
        self._dtype = dtype

    def read(self, index: Index, target: Array, dtype: str) -> None:
        """See ``Pieces``."""
        convert(self._array[index], self._dtype, target, dtype)

    def write(self, index: Index, source: Array, dtype: str) -> None:
        """See ``Pieces``."""
        convert(source, dtype, self._array[index], self._dtype)


class ScaledPieces:
    """Quantised pieces of ``grid`` that lie one behind the other in ``data``."""

    def __init__(self, rows: Rows, grid: Grid, data: memoryview) -> None:
        self._rows = rows
        pieces = np.frombuffer(data, np.uint8).reshape(-1, scaled_bytes(grid))
        split, end = 4 * grid.num_rows, (4 + grid.row) * grid.num_rows
        self._scales: Floats = pieces[:, :split].view("<f4").reshape(-1, *grid[:-1])
        self._codes: Codes = pieces[:, split:end].reshape(-1, *grid)

    def read(self, index: Index, target: Array, dtype: str) -> None:
        """See ``Pieces``."""
        self._rows.decode(self._codes[index], self._scales[index], target, dtype)

    def write(self, index: Index, source: Array, dtype: str) -> None:
        """See ``Pieces``."""
        self._rows.encode(source, dtype, self._codes[index], self._scales[index])


def scaled_bytes(grid: Grid) -> int:
    """Bytes of one quantised piece."""
    return -(-(4 + grid.row) * grid.num_rows // 4) * 4
