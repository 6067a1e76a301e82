"""The host's half of attention: which rows are written, which pages are read, what is masked.

Everything that depends on lengths is worked out here once per step, for all layers, so that a
layer's run is a fixed handful of operations (the plan/run split of FlashInfer, arXiv 2501.01005).

A KV store of shape ``(blocks * shards, layers, 2, block_size, heads, head_dim)`` is read in *pages*
of ``block_size`` tokens, page ``(block * shards * layers + layer) * 2 + is_value`` of the first
shard, and written in *rows* of one token, row ``page * block_size + offset``. Every shard's pages
and rows lie equally far behind the first one's, so that one plan serves all ranks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from triptych.core.errors import InvariantBroken
from triptych.core.layout import CODES, Layout
from triptych.executor.attention.selectors.rules import Selector
from triptych.executor.attention.selectors.view import VisualSpan
from triptych.executor.block_store import DTYPES
from triptych.executor.identity import ByIdentity
from triptych.executor.kernels.block_mask import BlockMask

_SMALL_PAGES = 8
"""Contexts up to this many pages share a group whatever their ratio."""


def numbers(blocks: tuple[int, ...]) -> NDArray[np.int32]:
    """A block table as an array."""
    return np.array(blocks, dtype=np.int32)


class Span(NamedTuple):
    """Tokens ``[start, end)`` of one sequence and its block table."""

    start: int
    end: int
    blocks: tuple[int, ...]
    pictures: tuple[VisualSpan, ...] = ()
    """Those that begin before ``end``; of a span of one token none need be named."""
    selector: Selector | None = None
    """Who chooses what it attends to; None: all up to each token."""


def fresh(spans: Sequence[Span], block_size: int) -> list[int]:
    """Blocks that a step begins and does not fill. They are cleared first, so that what lies behind
    a sequence's last token is a number, whoever reads the block, here or where it is sent."""
    return [
        span.blocks[span.end // block_size]
        for span in spans
        if span.end % block_size and span.end // block_size * block_size >= span.start
    ]


@dataclass(slots=True, frozen=True)
class SparseChunk:
    """A span with a selector, which chooses in every layer anew."""

    first: int
    last: int
    """Rows ``[first, last)`` of the step."""
    span: Span
    selector: Selector
    blocks: Tensor
    """int64: those of its context, on the store's device."""

    def tiles(self, query: Tensor, keys: Tensor, scale: float) -> BlockMask:
        """What it attends to: ``query`` (its rows, heads, head_dim), turned; ``keys`` its context
        (tokens, KV heads, head_dim) in a layer. Lists are of every head, or of those that share
        keys. Raises InvariantBroken for other ones."""
        mask = self.selector.select(query, keys, self.span.pictures, scale=scale)
        lists, heads, kv_heads = mask.counts.shape[0], query.shape[1], keys.shape[1]
        if lists % kv_heads or heads % lists:
            raise InvariantBroken(f"{lists} lists of tiles for {heads} heads, {kv_heads} of keys")
        return mask

    def context(self, pages: Tensor) -> Tensor:
        """Of a layer's keys or values (blocks, block_size, KV heads, head_dim) its own: (tokens, KV
        heads, head_dim)."""
        return pages.index_select(0, self.blocks).flatten(0, 1)[: self.span.end]


def sparse_chunks(
    spans: Sequence[Span], block_size: int, device: str | torch.device
) -> tuple[SparseChunk, ...]:
    """Of the spans with a selector, which lie last."""
    chunks, row = [], 0
    for span in spans:
        first, row = row, row + span.end - span.start
        if span.selector is not None:
            used = torch.tensor(span.blocks[: -(-span.end // block_size)], dtype=torch.int64)
            chunks.append(SparseChunk(first, row, span, span.selector, used.to(device)))
    return tuple(chunks)


@dataclass(slots=True, frozen=True)
class DecodeGroup:
    """Spans of one token and contexts of similar length: one padded batch."""

    first: int
    last: int
    """Rows ``[first, last)`` of the step."""
    pages: tuple[Tensor, ...]
    """By layer, (2 * spans * pages of the longest): keys' pages, then values'."""
    mask: Tensor
    """(spans, 1, 1, tokens of the longest) in the store's type, float32 where that is codes, to be
    added to scores: 0 where there is a token, else -inf. Of bools every layer would make it anew.
    """


@dataclass(slots=True, frozen=True)
class Prefill:
    """One span of several tokens."""

    first: int
    last: int
    pages: tuple[Tensor, ...]
    context: int
    """Tokens seen by the last one."""
    mask: Tensor | None
    """bool (tokens, context); None if the span begins its sequence: plainly causal."""


@dataclass(slots=True, frozen=True)
class AttentionPlan:
    """All that the layers of one step share."""

    keys: tuple[Tensor, ...]
    """By layer, the row that each token's key is written to."""
    values: tuple[Tensor, ...]
    decode: tuple[DecodeGroup, ...]
    prefill: tuple[Prefill, ...]
    sparse: tuple[SparseChunk, ...]
    fresh: Tensor
    """int64: see ``fresh``."""


class Planner:
    """Plans for one store's layout and device."""

    def __init__(self, layout: Layout, device: str) -> None:
        self.block_size = layout.block_size
        self.num_layers = layout.shape[0]
        self._pages_per_block = layout.num_shards * self.num_layers * 2
        self._device = device
        self._dtype = torch.float32 if layout.dtype in CODES else DTYPES[layout.dtype]
        self._numbers_of = ByIdentity(numbers)
        self._layers = np.arange(self.num_layers, dtype=np.int64)[:, None] * 2

    def plan(self, spans: Sequence[Span]) -> AttentionPlan:
        """The plan of a step whose rows are the spans' tokens, one after the other.

        Spans of one token come first, in ascending order of ``end``, and those with a selector
        last; raises InvariantBroken if a block table is too short.
        """
        for span in spans:
            if len(span.blocks) * self.block_size < span.end or span.start >= span.end:
                raise InvariantBroken("a segment's block table does not cover its tokens")
        keys = self._first_rows(spans)[None] + self._layers * self.block_size
        decode: list[DecodeGroup] = []
        prefill: list[Prefill] = []
        row = index = 0
        while index < len(spans) and spans[index].end - spans[index].start == 1:
            size = self._group_size(spans[index:])
            decode.append(self._decode(spans[index : index + size], row))
            index, row = index + size, row + size
        for span in spans[index:]:
            if span.selector is None:
                prefill.append(self._prefill(span, row))
                row += span.end - span.start
        return AttentionPlan(
            self._by_layer(keys),
            self._by_layer(keys + self.block_size),
            tuple(decode),
            tuple(prefill),
            sparse_chunks(spans, self.block_size, self._device),
            torch.tensor(fresh(spans, self.block_size), dtype=torch.int64, device=self._device),
        )

    def _first_rows(self, spans: Sequence[Span]) -> NDArray[np.int64]:
        """Rows of the keys of layer 0."""
        size, stride = self.block_size, self._pages_per_block * self.block_size
        rows: list[int] = []
        for start, end, blocks, *_ in spans:
            if end - start == 1:
                rows.append(blocks[start // size] * stride + start % size)
            else:
                index = np.arange(start, end)
                places = self._numbers_of(blocks)[index // size].astype(np.int64)
                rows.extend((places * stride + index % size).tolist())
        return np.array(rows, dtype=np.int64)

    def _group_size(self, spans: Sequence[Span]) -> int:
        """How many of the leading one-token spans are padded together: at most twice the work."""
        limit = max(_SMALL_PAGES, 2 * -(-spans[0].end // self.block_size)) * self.block_size
        size = 1
        while size < len(spans) and spans[size].end <= limit:
            if spans[size].end - spans[size].start != 1:
                break
            size += 1
        return size

    def _decode(self, spans: Sequence[Span], row: int) -> DecodeGroup:
        num_pages = -(-max(span.end for span in spans) // self.block_size)
        table = np.empty((len(spans), num_pages), dtype=np.int64)
        for line, span in zip(table, spans, strict=True):
            used = -(-span.end // self.block_size)
            line[:used] = self._numbers_of(span.blocks)[:used]
            line[used:] = span.blocks[0]  # padding is masked; it must only be numbers of one's own
        ends = np.array([span.end for span in spans])
        mask = np.arange(num_pages * self.block_size) < ends[:, None]
        return DecodeGroup(
            row,
            row + len(spans),
            self._pages(table.reshape(-1)),
            torch.from_numpy(np.where(mask, 0.0, -np.inf)[:, None, None]).to(
                self._device, self._dtype
            ),
        )

    def _prefill(self, span: Span, row: int) -> Prefill:
        num_pages = -(-span.end // self.block_size)
        table = np.array(span.blocks[:num_pages], dtype=np.int64)
        last = row + span.end - span.start
        if span.start == 0:
            return Prefill(row, last, (), span.end, None)
        mask = np.arange(span.end) <= np.arange(span.start, span.end)[:, None]
        return Prefill(
            row, last, self._pages(table), span.end, torch.from_numpy(mask).to(self._device)
        )

    def _pages(self, table: NDArray[np.int64]) -> tuple[Tensor, ...]:
        keys = table * self._pages_per_block
        return self._by_layer(np.concatenate((keys, keys + 1))[None] + self._layers)

    def _by_layer(self, index: NDArray[np.int64]) -> tuple[Tensor, ...]:
        return torch.from_numpy(index).to(self._device).unbind(0)
