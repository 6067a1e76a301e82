"""The host's half of the attention kernels: which tile of queries meets which keys.

Made once a step from lengths that the host knows, used by every layer (the plan/run split of
FlashInfer, arXiv 2501.01005, section 3.3). Knows lengths and block tables; reads no tensor of the
device, and each plan goes there in one copy.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from triptych.executor.kernels.arguments import require
from triptych.executor.kernels.attention_shapes import check_index

_ALIGNED = 4
"""int32 values in 16 bytes: a kernel is compiled once for addresses that divide by that."""


class PrefillPlan(NamedTuple):
    """Packed queries of several sequences, in tiles of ``tile_rows`` (query, head) pairs."""

    row_starts: Tensor
    """int32 (sequences + 1): rows ``[row_starts[s], row_starts[s + 1])`` are of sequence ``s``."""
    ends: Tensor
    """int32 (sequences): tokens that the last row of each sees."""
    tiles: Tensor
    """int32 (tiles, 2): sequence, first of its (row, head) pairs. Most work first."""
    tile_rows: int
    group: int
    """Query heads that share a KV head."""
    num_tokens: int
    longest: int
    """Tokens of the longest context."""

    def check(self, query: Tensor, keys: Tensor, table: Tensor) -> None:
        """Raises InvariantBroken if the plan is for other sequences than these."""
        require(query.shape[1] == keys.shape[2] * self.group, f"a plan for groups of {self.group}")
        require(len(query) >= self.num_tokens, f"a plan for {self.num_tokens} tokens")
        require(table.shape[1] * keys.shape[1] >= self.longest, "a table is too short")
        check_index(self.ends, (len(table),), "ends")
        check_index(self.row_starts, (len(table) + 1,), "row_starts")


class CascadePlan(NamedTuple):
    """Which sequences of a decode step share their first blocks."""

    members: Tensor
    """int32: rows of the batch that share, group after group."""
    group_starts: Tensor
    """int32 (groups + 1): ``members[group_starts[g]:group_starts[g + 1]]`` are group ``g``."""
    prefix_ends: Tensor
    """int32 (groups): tokens that a group shares, whole blocks."""
    skips: Tensor
    """int32 (sequences): the same by row of the batch, 0 for a row that shares nothing."""
    tiles: Tensor
    """int32 (tiles, 2): group, first of its (member, head) pairs."""
    tile_rows: int
    group: int
    """Query heads that share a KV head."""
    longest: int
    """Tokens of the longest shared prefix."""

    def check(self, query: Tensor, keys: Tensor) -> None:
        """Raises InvariantBroken if the plan is for other sequences than these."""
        require(query.shape[1] == keys.shape[2] * self.group, f"a plan for groups of {self.group}")
        check_index(self.skips, (len(query),), "skips")


class VarlenPlan(NamedTuple):
    """Spans of tokens that see one another, in tiles of up to ``tile_rows`` tokens."""

    starts: Tensor
    """int32 (spans + 1)."""
    lows: Tensor
    """int32 (tokens): where the span of each token begins."""
    highs: Tensor
    """int32 (tokens): where it ends."""
    tiles: Tensor
    """int32 (tiles, 5): first row, row behind the last, first key, key behind the last, spans."""
    tile_rows: int


def _send(parts: Sequence[NDArray[np.int32]], device: torch.device) -> list[Tensor]:
    """The parts on ``device``, in one copy."""
    sizes = [-(-max(part.size, 1) // _ALIGNED) * _ALIGNED for part in parts]
    packed = np.zeros(sum(sizes), dtype=np.int32)
    starts = np.cumsum([0, *sizes[:-1]])
    for start, part in zip(starts, parts, strict=True):
        packed[start : start + part.size] = part.reshape(-1)
    sent = torch.from_numpy(packed).to(device)
    return [
        sent[start : start + part.size].view(part.shape)
        for start, part in zip(starts.tolist(), parts, strict=True)
    ]


def _cut(counts: Sequence[int], size: int) -> list[tuple[int, int]]:
    """(index, first) of tiles of ``size`` that cover ``counts[index]`` rows each."""
    return [(index, first) for index, count in enumerate(counts) for first in range(0, count, size)]


def plan_prefill(
    rows: Sequence[int],
    ends: Sequence[int],
    *,
    group: int,
    device: torch.device,
    deterministic: bool = False,
) -> PrefillPlan:
    """Sequence ``s`` brings ``rows[s]`` queries, the last of which sees ``ends[s]`` tokens;
    ``group`` heads share a KV head. With ``deterministic`` the size of a tile is always the same.
    Raises InvariantBroken if a sequence has no rows, or more rows than tokens."""
    require(len(rows) == len(ends) > 0, "a prefill needs rows and an end by sequence")
    for count, end in zip(rows, ends, strict=True):
        require(0 < count <= end, f"{count} rows do not end at token {end}")
    size = 64 if max(rows) * group <= 64 and not deterministic else 128
    tiles = _cut([count * group for count in rows], size)
    tiles.sort(key=lambda tile: -(ends[tile[0]] - rows[tile[0]] + tile[1] // group))
    row_starts, sent_ends, sent_tiles = _send(
        [
            np.cumsum([0, *rows], dtype=np.int32),
            np.array(ends, dtype=np.int32),
            np.array(tiles, dtype=np.int32),
        ],
        device,
    )
    longest = max(ends)
    return PrefillPlan(row_starts, sent_ends, sent_tiles, size, group, sum(rows), longest)


def plan_cascade(
    table: NDArray[np.int32],
    ends: Sequence[int],
    *,
    block_size: int,
    group: int,
    device: torch.device,
    least: int = 256,
) -> CascadePlan:
    """Groups of rows of ``table`` (sequences, blocks) whose first blocks are the same, where that
    is ``least`` tokens or more; ``group`` heads share a KV head. One level: a row is in one group
    at most, and rows join while that saves reads. Raises InvariantBroken if lengths do not fit."""
    require(table.ndim == 2 and len(table) == len(ends), "one end by row of the table")
    whole = np.array(ends, dtype=np.int32) // block_size
    require(bool((whole <= table.shape[1]).all()), "a table is shorter than its sequence")
    groups = _sharing(table, whole, max(1, -(-least // block_size)))
    skips = np.zeros(len(table), dtype=np.int32)
    for rows, blocks in groups:
        skips[rows] = blocks * block_size
    counts = [len(rows) for rows, _ in groups]
    widest = max(counts, default=1) * group
    size = min(128, max(16, 1 << (widest - 1).bit_length()))
    tiles = _cut([count * group for count in counts], size)
    members, group_starts, prefix_ends, sent_skips, sent_tiles = _send(
        [
            np.array([row for rows, _ in groups for row in rows], dtype=np.int32),
            np.cumsum([0, *counts], dtype=np.int32),
            np.array([blocks * block_size for _, blocks in groups], dtype=np.int32),
            skips,
            np.array(tiles, dtype=np.int32).reshape(-1, 2),
        ],
        device,
    )
    longest = int(skips.max(initial=0))
    return CascadePlan(
        members, group_starts, prefix_ends, sent_skips, sent_tiles, size, group, longest
    )


def _sharing(
    table: NDArray[np.int32], whole: NDArray[np.int32], least: int
) -> list[tuple[list[int], int]]:
    """(rows, blocks shared) by group. Rows with equal beginnings are neighbours once sorted."""
    order = sorted(range(len(table)), key=lambda row: table[row].astype(">i4").tobytes())
    groups: list[tuple[list[int], int]] = []
    rows: list[int] = []
    shared = 0
    for row in order:
        alike = 0
        if rows:
            limit = min(shared, int(whole[row]))
            differ = np.flatnonzero(table[row, :limit] != table[rows[0], :limit])
            alike = int(differ[0]) if len(differ) else limit
        if rows and alike >= least and len(rows) * alike >= (len(rows) - 1) * shared:
            rows.append(row)
            shared = alike
        else:
            rows, shared = [row], int(whole[row])
            groups.append((rows, shared))
        groups[-1] = (rows, shared)
    return [(rows, shared) for rows, shared in groups if len(rows) > 1]


def plan_varlen(
    lengths: Sequence[int], *, device: torch.device, deterministic: bool = False
) -> VarlenPlan:
    """Spans of ``lengths`` tokens, one after the other. A tile holds as many whole spans as fit, or
    a part of one; with ``deterministic`` it holds one span and its size is always the same. Raises
    InvariantBroken if a span is empty."""
    require(len(lengths) > 0 and min(lengths) > 0, "a span has no tokens")
    size = 64 if deterministic or max(lengths) <= 64 else 128
    room = 0 if deterministic else size
    starts = np.cumsum([0, *lengths], dtype=np.int32)
    tiles: list[tuple[int, int, int, int, int]] = []
    for start, length in zip(starts.tolist(), lengths, strict=False):
        end = start + length
        if tiles and end - tiles[-1][0] <= room and tiles[-1][2] == tiles[-1][0]:
            first, _, _, _, spans = tiles[-1]
            tiles[-1] = (first, end, first, end, spans + 1)
        else:
            tiles += [
                (first, min(first + size, end), start, end, 1) for first in range(start, end, size)
            ]
    tiles.sort(key=lambda tile: tile[2] - tile[3])
    sent_starts, lows, highs, sent_tiles = _send(
        [
            starts,
            np.repeat(starts[:-1], lengths),
            np.repeat(starts[1:], lengths),
            np.array(tiles, dtype=np.int32),
        ],
        device,
    )
    return VarlenPlan(sent_starts, lows, highs, sent_tiles, size)
