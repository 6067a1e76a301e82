"""The formats that blocks travel and rest in, by name: ``raw``, ``int8`` and ``fp8``.

Knows layouts, places in a store's bytes and the settings that name a format; no stores, no sockets.
The errors of the two lossy ones are stated in ``rows``.
"""

import math
from collections.abc import Sequence

from triptych.codec.dtypes import STORAGE
from triptych.codec.grid import blocks_of, grid_of, numbers_of, runs
from triptych.codec.pieces import Pieces, PlainPieces, ScaledPieces, scaled_bytes
from triptych.codec.rows import Fp8, Int8, Rows
from triptych.core.errors import ConfigError
from triptych.core.layout import CODES, FLOATS, Layout


class Format:
    """One way to write blocks. Has no state; any thread may use it.

    ``memory`` are the bytes of a whole store and ``blocks`` places in it, ``layers`` a range of
    step 1 (None: all of them), ``data`` the pieces of ``blocks`` one behind the other.
    """

    def __init__(self, name: str, rows: Rows | None = None) -> None:
        self.name = name
        self._rows = rows

    def takes(self, layout: Layout) -> bool:
        """Whether blocks of ``layout`` can be written so."""
        return self._rows is None or layout.dtype in FLOATS

    def check(self, layout: Layout, setting: str) -> None:
        """Raise ConfigError that names ``setting`` unless blocks of ``layout`` can be written so.
        The oracle's are bytes, every bit of which counts; codes are quantised already."""
        if not self.takes(layout):
            held = "codes" if layout.dtype in CODES else "bytes"
            raise ConfigError(f"{setting}: {self.name} is for numbers, the blocks hold {held}")

    def encoded_bytes(self, layout: Layout, num_layers: int | None = None) -> int:
        """Bytes of one piece of so many layers (None: all)."""
        grid = grid_of(layout, num_layers)
        if self._rows is None:
            return math.prod(grid) * STORAGE[layout.dtype].itemsize
        return scaled_bytes(grid)

    def pieces(self, layout: Layout, data: memoryview, num_layers: int | None = None) -> Pieces:
        """The pieces in ``data``, whole ones, to be read or written part by part."""
        grid = grid_of(layout, num_layers)
        if self._rows is None:
            return PlainPieces(numbers_of(data, layout.dtype, grid), layout.dtype)
        return ScaledPieces(self._rows, grid, data)

    def encode(
        self,
        layout: Layout,
        memory: memoryview,
        blocks: Sequence[int],
        data: memoryview,
        layers: range | None = None,
    ) -> None:
        """Write what ``blocks`` hold to ``data``."""
        pieces = self.pieces(layout, data, None if layers is None else len(layers))
        store = blocks_of(memory, layout)[:, :, slice_of(layers)]
        for at, run in runs(blocks):
            pieces.write((at,), store[run], layout.dtype)

    def decode(
        self,
        layout: Layout,
        data: memoryview,
        memory: memoryview,
        blocks: Sequence[int],
        layers: range | None = None,
    ) -> None:
        """Write what ``data`` holds to ``blocks``."""
        pieces = self.pieces(layout, data, None if layers is None else len(layers))
        store = blocks_of(memory, layout)[:, :, slice_of(layers)]
        for at, run in runs(blocks):
            pieces.read((at,), store[run], layout.dtype)


def slice_of(layers: range | None) -> slice:
    """A range of layers as what selects them in an array."""
    return slice(None) if layers is None else slice(layers.start, layers.stop)


FORMATS = {
    each.name: each for each in (Format("raw"), Format("int8", Int8()), Format("fp8", Fp8()))
}
"""By the names that settings and peers use."""
