"""Blocks of a layout as one array with seven axes, whichever kind they are.

    kv           (blocks, shards, layers, 2, tokens, heads of a shard, head_dim)
    embedding    (blocks, 1, 1, 1, tokens, groups, numbers of a group)

The last axis is the row that gets a scale where blocks are quantised. A group of an embedding has
128 numbers, or all of them where the width is no multiple of that.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from triptych.codec.dtypes import STORAGE, Array
from triptych.core.layout import Layout

GROUP = 128


class Grid(NamedTuple):
    """Sizes of the axes behind the blocks."""

    shards: int
    layers: int
    planes: int
    tokens: int
    heads: int
    row: int

    @property
    def num_rows(self) -> int:
        """Rows of one block."""
        return self.shards * self.layers * self.planes * self.tokens * self.heads


def grid_of(layout: Layout, num_layers: int | None = None) -> Grid:
    """The axes of a block of ``layout``, or of a piece of so many of its layers."""
    if layout.kind == "kv":
        layers, planes, tokens, heads, row = layout.shape
        if num_layers is not None:
            layers = num_layers
        return Grid(layout.num_shards, layers, planes, tokens, heads, row)
    tokens, width = layout.shape
    row = GROUP if width % GROUP == 0 else width
    return Grid(1, 1, 1, tokens, width // row, row)


def numbers_of(memory: memoryview, dtype: str, grid: Grid) -> Array:
    """Contiguous bytes of blocks (or pieces) of ``grid`` as an array, without a copy."""
    numbers: Array = np.frombuffer(memory, STORAGE[dtype])
    return numbers.reshape(-1, *grid)


def blocks_of(memory: memoryview, layout: Layout) -> Array:
    """The same for whole blocks of ``layout``."""
    return numbers_of(memory, layout.dtype, grid_of(layout))


def runs(blocks: Sequence[int]) -> list[tuple[slice, slice]]:
    """Ascending runs of ``blocks``: where they stand in the sequence, and which they are.
    ``(4, 5, 6, 1, 2) -> [(0:3, 4:7), (3:5, 1:3)]``."""
    found: list[tuple[slice, slice]] = []
    start = 0
    for at, block in enumerate(blocks):
        if at + 1 == len(blocks) or blocks[at + 1] != block + 1:
            found.append((slice(start, at + 1), slice(blocks[start], block + 1)))
            start = at + 1
    return found
