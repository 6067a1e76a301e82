"""M-RoPE positions of any slice of a sequence, from its visual items alone.

Qwen2-VL (arXiv 2409.12191), section 2.1: a text token has one position for time, height and width;
a visual token has its place in the picture; text behind a picture goes on behind the picture's
longest side. Knows grids and offsets; needs neither token ids nor the rest of the prompt.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from triptych.core.request import Item


def shift_behind(items: Sequence[Item], merge_size: int) -> int:
    """Position minus index of every text token behind ``items``."""
    return sum(max(item.grid[1:]) // merge_size - item.num_tokens for item in items)


def rope_positions(
    items: Sequence[Item], start: int, end: int, merge_size: int
) -> NDArray[np.int64]:
    """Positions (time, height, width) of tokens ``[start, end)``, int64 of shape (3, end - start).

    ``items`` are in order of offset and hold at least those that begin before ``end``. Tokens
    behind the prompt go on like text.
    """
    positions = np.empty((3, end - start), dtype=np.int64)
    shift, done = 0, start
    for item in items:
        if item.offset >= end:
            break
        if item.end > start:
            first, last = max(item.offset, start), min(item.end, end)
            positions[:, done - start : first - start] = np.arange(done, first) + shift
            positions[:, first - start : last - start] = (
                _inside(item, first, last, merge_size) + item.offset + shift
            )
            done = last
        shift += shift_behind((item,), merge_size)
    positions[:, done - start :] = np.arange(done, end) + shift
    return positions


def _inside(item: Item, first: int, last: int, merge_size: int) -> NDArray[np.int64]:
    """Places in the merged grid of the item's tokens, row by row, frame by frame."""
    rows, columns = item.grid[1] // merge_size, item.grid[2] // merge_size
    index = np.arange(first - item.offset, last - item.offset)
    return np.stack((index // (rows * columns), index // columns % rows, index % columns))
