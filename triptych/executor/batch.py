"""A language plan as tensors: flattened tokens, positions, rows to splice in, rows to draw from.

Knows plans and block arithmetic; does not know what a model does with the tensors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from triptych.core.errors import InvariantBroken
from triptych.core.plan import LanguagePlan, Segment
from triptych.executor.attention.plan import Span
from triptych.executor.attention.selectors.view import VisualSpan
from triptych.executor.attention.sparse import Sparse
from triptych.executor.operations import SpanPlanner
from triptych.executor.positions import rope_positions, shift_behind


class Row(NamedTuple):
    """One sequence of a step that only decodes."""

    token: int
    position: int
    """In the rotary's count; the same for time, height and width."""
    span: Span


@dataclass(slots=True, frozen=True)
class Splice:
    """Rows of the step that come from the embedding store instead of the token table."""

    rows: Tensor
    """int64 (n,): rows of the step."""
    sources: Tensor
    """int64 (n,): ``block * embedding_block_size + offset`` in the embedding store."""


@dataclass(slots=True, frozen=True)
class Batch:
    """One step. Segments of one token lie first, by length of context, then the others, and then
    those whose attention is sparse."""

    tokens: Tensor
    """int64 (n,)."""
    positions: Tensor
    """int64 (3, n): time, height, width."""
    splice: Splice | None
    attention: Any
    """What attention's planner made of the segments."""
    drawn_rows: Tensor
    """int64 (number of draws,): last row of each segment that draws, in the plan's order."""


class Batcher:
    """Makes batches for one model: its merge size, its stores' block sizes, its device. Without an
    ``embedding_block_size`` nothing is spliced in: the rows come from elsewhere."""

    def __init__(
        self,
        planner: SpanPlanner,
        *,
        merge_size: int,
        embedding_block_size: int | None,
        device: str,
        sparse: Sparse | None = None,
    ) -> None:
        self._planner = planner
        self._sparse = sparse
        self._merge_size = merge_size
        self._embedding_block_size = embedding_block_size
        self._device = device

    def make(self, plan: LanguagePlan) -> Batch:
        """The tensors of ``plan``. Raises InvariantBroken if a block that it needs is not named."""
        spans = [self._span(segment) for segment in plan.segments]
        order = sorted(range(len(spans)), key=lambda index: _rank(spans[index], index))
        segments = [plan.segments[index] for index in order]
        ends = np.cumsum([len(segment.tokens) for segment in segments])
        last_rows = dict(zip(order, (ends - 1).tolist(), strict=True))
        drawn = [last_rows[index] for index, s in enumerate(plan.segments) if s.draw is not None]
        tokens = [token for segment in segments for token in segment.tokens]
        return Batch(
            tokens=self._tensor(np.array(tokens, dtype=np.int64)),
            positions=self._tensor(self._positions(segments)),
            splice=self._splice(segments),
            attention=self._planner.plan([spans[index] for index in order]),
            drawn_rows=self._tensor(np.array(drawn, dtype=np.int64)),
        )

    def decodes(self, plan: LanguagePlan) -> list[Row] | None:
        """The plan's sequences, in its order, if each computes one token that is no picture's, and
        draws; else None."""
        rows = []
        for segment in plan.segments:
            place = self._behind(segment)
            if place is None or segment.draw is None:
                return None
            span = Span(segment.start, segment.end, segment.blocks)
            rows.append(Row(segment.tokens[0], place, span))
        return rows

    def _span(self, segment: Segment) -> Span:
        span = Span(segment.start, segment.end, segment.blocks)
        if self._sparse is None or len(segment.tokens) == 1:
            return span
        size = self._merge_size
        pictures = tuple(
            VisualSpan(item.offset, item.end, (frames, rows // size, columns // size))
            for item in (placed.item for placed in segment.items)
            if item.offset < segment.end
            for frames, rows, columns in (item.grid,)
        )
        return self._sparse.applied(span._replace(pictures=pictures))

    def _behind(self, segment: Segment) -> int | None:
        """The position of a single token behind all items; None for any other segment."""
        items = [placed.item for placed in segment.items]
        if len(segment.tokens) > 1 or (items and items[-1].end > segment.start):
            return None
        return segment.start + shift_behind(items, self._merge_size)

    def _positions(self, segments: Sequence[Segment]) -> NDArray[np.int64]:
        parts: list[NDArray[np.int64]] = []
        behind: list[int] = []
        for segment in segments:
            if (place := self._behind(segment)) is not None:
                behind.append(place)
                continue
            if behind:
                parts.append(np.tile(np.array(behind, dtype=np.int64), (3, 1)))
                behind = []
            items = [placed.item for placed in segment.items]
            parts.append(rope_positions(items, segment.start, segment.end, self._merge_size))
        if behind:
            parts.append(np.tile(np.array(behind, dtype=np.int64), (3, 1)))
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def _splice(self, segments: Sequence[Segment]) -> Splice | None:
        rows: list[NDArray[np.int64]] = []
        sources: list[NDArray[np.int64]] = []
        row, size = 0, self._embedding_block_size
        if size is None:
            return None
        for segment in segments:
            for placed in segment.items:
                first = max(placed.item.offset, segment.start)
                last = min(placed.item.end, segment.end)
                if first >= last:
                    continue
                index = np.arange(first - placed.item.offset, last - placed.item.offset)
                if len(placed.blocks) * size < last - placed.item.offset:
                    raise InvariantBroken("an item's embedding blocks do not cover its tokens")
                table = np.array(placed.blocks, dtype=np.int64)
                sources.append(table[index // size] * size + index % size)
                rows.append(np.arange(first, last) + (row - segment.start))
            row += len(segment.tokens)
        if not rows:
            return None
        return Splice(self._tensor(np.concatenate(rows)), self._tensor(np.concatenate(sources)))

    def _tensor(self, array: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(array).to(self._device)


def _rank(span: Span, index: int) -> tuple[int, int, int]:
    """Spans of one token, by length of context; then chunks, and then those with a selector."""
    if span.end - span.start == 1:
        return (0, span.end, index)
    return (1 if span.selector is None else 2, 0, index)
