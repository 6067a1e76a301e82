"""Order, places and attention spans of the patches of pictures of any size: integers only.

A picture's patches come in the processor's order: merged square by merged square, row by row. Where
a tower has windows, a picture's squares are put in window order, windows of equal size side by
side, so that windows are attended in a few batches without padding or gathering. Knows grids.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Grid = tuple[int, int, int]


class Run(NamedTuple):
    """``spans`` neighbours of ``length`` patches from row ``first`` on; every patch sees
    its own span."""

    first: int
    spans: int
    length: int


class PatchPlan(NamedTuple):
    """The patches of one step."""

    order: NDArray[np.int64]
    """(patches,): which incoming patch stands in each row."""
    places: NDArray[np.int64]
    """(2, patches): row and column of each row's patch in its picture."""
    whole: tuple[Run, ...]
    """Spans that are whole frames."""
    windows: tuple[Run, ...]
    """Spans that are windows; the same as ``whole`` where there are none."""
    restore: NDArray[np.int64]
    """(visual tokens,): which merged row each token of the processor's order comes from."""


def plan_patches(grids: Sequence[Grid], merge_size: int, window: int) -> PatchPlan:
    """The plan of pictures laid one after the other; ``window`` in merged patches, 0 for none."""
    square = merge_size**2
    parts = [_plan_one(grid, merge_size, window) for grid in grids]
    starts = np.cumsum([0, *(len(part.order) for part in parts)]).tolist()
    moved = list(zip(parts, starts[:-1], strict=True))
    return PatchPlan(
        order=np.concatenate([part.order + start for part, start in moved]),
        places=np.concatenate([part.places for part in parts], axis=1),
        whole=_join([_move(run, start) for part, start in moved for run in part.whole]),
        windows=_join([_move(run, start) for part, start in moved for run in part.windows]),
        restore=np.concatenate([part.restore + start // square for part, start in moved]),
    )


@lru_cache(maxsize=64)
def _plan_one(grid: Grid, merge_size: int, window: int) -> PatchPlan:
    frames, height, width = grid
    square, rows, columns = merge_size**2, height // merge_size, width // merge_size
    whole: tuple[Run, ...] = (Run(0, frames, height * width),)
    tokens = np.arange(frames * rows * columns).reshape(frames, rows, columns)
    if window == 0:
        merged, windows = tokens.reshape(-1), whole
    else:
        merged, windows = _windows(tokens, square, window)
    order = (merged[:, None] * square + np.arange(square)).reshape(-1)
    return PatchPlan(order, _places(grid, merge_size)[:, order], whole, windows, merged.argsort())


def _windows(
    tokens: NDArray[np.int64], square: int, window: int
) -> tuple[NDArray[np.int64], tuple[Run, ...]]:
    """Visual tokens in window order, frame by frame, and the runs of the windows in patches."""
    pieces: list[NDArray[np.int64]] = []
    for frame in tokens:
        cut = [
            frame[row : row + window, column : column + window].reshape(-1)
            for row in range(0, frame.shape[0], window)
            for column in range(0, frame.shape[1], window)
        ]
        pieces += sorted(cut, key=len, reverse=True)
    sizes = [len(piece) * square for piece in pieces]
    starts = np.cumsum([0, *sizes]).tolist()
    runs = [Run(start, 1, size) for start, size in zip(starts[:-1], sizes, strict=True)]
    return np.concatenate(pieces), _join(runs)


def _places(grid: Grid, merge_size: int) -> NDArray[np.int64]:
    """Rows and columns of the patches in the processor's order."""
    frames, height, width = grid
    shape = (height // merge_size, merge_size, width // merge_size, merge_size)
    both = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"))
    return np.tile(both.reshape(2, *shape).transpose(0, 1, 3, 2, 4).reshape(2, -1), (1, frames))


def _move(run: Run, start: int) -> Run:
    return Run(run.first + start, run.spans, run.length)


def _join(runs: list[Run]) -> tuple[Run, ...]:
    """Neighbours of equal length as one run."""
    joined: list[Run] = []
    for run in runs:
        if joined and joined[-1].length == run.length:
            joined[-1] = Run(joined[-1].first, joined[-1].spans + run.spans, run.length)
        else:
            joined.append(run)
    return tuple(joined)
