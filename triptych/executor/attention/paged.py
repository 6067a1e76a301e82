"""Attention over paged memory by our kernels: planned on the host, each layer a launch or two.

Decoding rows and chunks of prompts are attended by kernels of their own; rows that share their
first blocks read these once. Knows plans, stores and kernels; no model.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from triptych.core.errors import InvariantBroken
from triptych.core.layout import Layout
from triptych.executor.attention.plan import Span, SparseChunk, fresh, numbers, sparse_chunks
from triptych.executor.identity import ByIdentity
from triptych.executor.kernels.attention_plan import (
    CascadePlan,
    PrefillPlan,
    plan_cascade,
    plan_prefill,
)
from triptych.executor.kernels.block_mask import packed
from triptych.executor.kernels.cascade import cascade_decode
from triptych.executor.kernels.decode import paged_decode
from triptych.executor.kernels.prefill import paged_prefill
from triptych.executor.kernels.rotary import rotate_and_write
from triptych.executor.kernels.sparse_prefill import sparse_prefill
from triptych.executor.kv import KINDS, planes
from triptych.executor.ranks import Share


@dataclass(slots=True, frozen=True)
class SparsePlan:
    """The chunks with a selector, which lie last, for one launch."""

    chunks: tuple[SparseChunk, ...]
    row_starts: Tensor
    """int32 (chunks + 1): rows of the step, counted from the first of these."""
    ends: Tensor
    """int32 (chunks,): tokens of each context."""


@dataclass(slots=True, frozen=True)
class KernelPlan:
    """All that the layers of one step share."""

    slots: Tensor
    """int32 (tokens,): where each token's KV is written, ``block * block_size + offset``."""
    num_decodes: int
    """Rows ``[0, num_decodes)`` of the step are one token each of a sequence of their own."""
    table: Tensor
    """int32 (sequences, blocks of the longest): decoding sequences, then the others."""
    ends: Tensor
    """int32 (decoding sequences,): tokens that each sees."""
    cascade: CascadePlan | None
    """Where decoding sequences share their first blocks."""
    num_dense: int
    """Rows ``[num_decodes, num_dense)`` are chunks that attend to all before them."""
    prefill: PrefillPlan | None
    """Theirs."""
    sparse: SparsePlan | None
    fresh: Tensor | None
    """int64: see ``attention.plan.fresh``; None if whoever made the plan has cleared them."""


class KernelPlanner:
    """Plans for one store's layout and device. Implements ``operations.SpanPlanner``."""

    def __init__(self, layout: Layout, device: str, group: int, *, deterministic: bool) -> None:
        self._block_size = layout.block_size
        self._device = torch.device(device)
        self._group = group
        self._numbers_of = ByIdentity(numbers)
        self._deterministic = deterministic

    def plan(self, spans: Sequence[Span]) -> KernelPlan:
        """See ``SpanPlanner``."""
        for span in spans:
            if len(span.blocks) * self._block_size < span.end or span.start >= span.end:
                raise InvariantBroken("a segment's block table does not cover its tokens")
        count = next((n for n, one in enumerate(spans) if one.end - one.start > 1), len(spans))
        table = self._table(spans)
        chunks = [span for span in spans[count:] if span.selector is None]
        ends = [span.end for span in spans[:count]]
        # How bits come about must not depend on the neighbours: then nothing is read together.
        shares = count > 1 and not self._deterministic
        cascade = self._cascade(table[:count], ends) if shares else None
        prefill = None
        if chunks:
            prefill = plan_prefill(
                [span.end - span.start for span in chunks],
                [span.end for span in chunks],
                group=self._group,
                device=self._device,
                deterministic=self._deterministic,
            )
        return KernelPlan(
            slots=self._send(self._slots(spans)),
            num_decodes=count,
            table=self._send(table),
            ends=self._send(np.array(ends, dtype=np.int32)),
            cascade=cascade,
            num_dense=count + sum(span.end - span.start for span in chunks),
            prefill=prefill,
            sparse=self._sparse(spans),
            fresh=torch.tensor(fresh(spans, self._block_size), dtype=torch.int64).to(self._device),
        )

    def _sparse(self, spans: Sequence[Span]) -> SparsePlan | None:
        chunks = sparse_chunks(spans, self._block_size, self._device)
        if not chunks:
            return None
        rows = [chunk.first for chunk in chunks] + [chunks[-1].last]
        ends = [chunk.span.end for chunk in chunks]
        return SparsePlan(
            chunks,
            self._send(np.array(rows, dtype=np.int32) - np.int32(rows[0])),
            self._send(np.array(ends, dtype=np.int32)),
        )

    def _table(self, spans: Sequence[Span]) -> NDArray[np.int32]:
        size = self._block_size
        table = np.zeros((len(spans), max(-(-span.end // size) for span in spans)), np.int32)
        for row, span in zip(table, spans, strict=True):
            used = -(-span.end // size)
            row[:used] = self._numbers_of(span.blocks)[:used]
        return table

    def _slots(self, spans: Sequence[Span]) -> NDArray[np.int32]:
        size, parts = self._block_size, []
        for span in spans:
            places = np.arange(span.start, span.end)
            parts.append(self._numbers_of(span.blocks)[places // size] * size + places % size)
        return np.concatenate(parts).astype(np.int32)

    def _cascade(self, table: NDArray[np.int32], ends: list[int]) -> CascadePlan | None:
        found = plan_cascade(
            table, ends, block_size=self._block_size, group=self._group, device=self._device
        )
        return found if len(found.prefix_ends) else None

    def _send(self, array: NDArray[np.int32]) -> Tensor:
        return torch.from_numpy(array).to(self._device)


@dataclass(slots=True, frozen=True)
class _Layer:
    """One layer's keys and values (blocks, block_size, KV heads, head_dim), numbers or codes."""

    keys: Tensor
    values: Tensor
    key_scales: Tensor | None = None
    """Of codes: float32 (blocks, block_size, KV heads)."""
    value_scales: Tensor | None = None

    def context(self, chunk: SparseChunk) -> Tensor:
        """A chunk's keys as numbers (tokens, KV heads, head_dim)."""
        if self.key_scales is None:
            return chunk.context(self.keys)
        codes = chunk.context(self.keys.view(torch.uint8)).view(self.keys.dtype)
        return codes.float() * chunk.context(self.key_scales)[..., None]


def _layer(runs: Tensor, dtype: str) -> _Layer:
    """Of (blocks, 2, block_size, KV heads, width)."""
    if dtype not in KINDS:
        return _Layer(*runs.unbind(1))
    codes, scales = planes(runs, KINDS[dtype])
    return _Layer(codes[:, 0], codes[:, 1], scales[:, 0], scales[:, 1])


class KernelAttention:
    """Attention of one rank over one KV store. Implements ``operations.Attention``."""

    def __init__(self, store: Tensor, share: Share, layout: Layout, *, deterministic: bool) -> None:
        self.share = share
        self._runs = runs = store.view(-1, share.num_ranks, *layout.shape)[:, share.rank]
        self._layers = [_layer(runs[:, index], layout.dtype) for index in range(layout.num_layers)]
        self._scale = float(self._layers[0].keys.shape[-1] ** -0.5)
        self._deterministic = deterministic

    def begin(self, plan: KernelPlan) -> None:
        """Clear the blocks that a step begins: kernels never look behind the last token, but blocks
        are sent whole, to whoever may."""
        if plan.fresh is not None:
            self.clear(plan.fresh)

    def clear(self, blocks: Tensor) -> None:
        """Fill whole ``blocks`` (int64) of all layers with zeros."""
        if len(blocks):
            self._runs.index_fill_(0, blocks, 0)

    def run(
        self, qkv: Tensor, rotary: tuple[Tensor, Tensor], layer: int, plan: KernelPlan
    ) -> Tensor:
        """See ``operations.Attention``."""
        memory = self._layers[layer]
        query = rotate_and_write(
            qkv,
            *rotary,
            memory.keys,
            memory.values,
            plan.slots,
            key_scales=memory.key_scales,
            value_scales=memory.value_scales,
        )
        out, count = torch.empty_like(query), plan.num_decodes
        if count:
            self._decode(query[:count], memory, plan, out[:count])
        if plan.prefill is not None:
            chunks = len(plan.prefill.ends)
            paged_prefill(
                query[count : plan.num_dense],
                memory.keys,
                memory.values,
                plan.table[count : count + chunks],
                plan.prefill,
                scale=self._scale,
                key_scales=memory.key_scales,
                value_scales=memory.value_scales,
                out=out[count : plan.num_dense],
            )
        if plan.sparse is not None:
            self._sparse(query, memory, plan, plan.sparse, out)
        return out.flatten(1)

    def _sparse(
        self, query: Tensor, memory: _Layer, plan: KernelPlan, sparse: SparsePlan, out: Tensor
    ) -> None:
        """A selector a chunk, one launch for all."""
        tiles = [
            chunk.tiles(query[chunk.first : chunk.last], memory.context(chunk), self._scale)
            for chunk in sparse.chunks
        ]
        sparse_prefill(
            query[plan.num_dense :],
            memory.keys,
            memory.values,
            plan.table[-len(sparse.chunks) :],
            sparse.row_starts,
            sparse.ends,
            packed(tiles),
            scale=self._scale,
            key_scales=memory.key_scales,
            value_scales=memory.value_scales,
            out=out[plan.num_dense :],
        )

    def _decode(self, query: Tensor, memory: _Layer, plan: KernelPlan, out: Tensor) -> None:
        rows = memory.keys, memory.values, plan.table[: plan.num_decodes], plan.ends
        scales = memory.key_scales, memory.value_scales
        if plan.cascade is not None:
            cascade_decode(
                query,
                *rows,
                plan.cascade,
                scale=self._scale,
                key_scales=scales[0],
                value_scales=scales[1],
                out=out,
            )
        else:
            paged_decode(
                query,
                *rows,
                scale=self._scale,
                key_scales=scales[0],
                value_scales=scales[1],
                deterministic=self._deterministic,
                out=out,
            )
