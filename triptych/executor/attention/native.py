"""Attention over paged memory in C: planned on the host, each layer two operations.

Every row attends for itself, decoding or in a chunk, so its numbers do not depend on what is in the
step beside it. Knows plans, stores and addresses; no model.
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
from triptych.executor.kernels.block_mask import BlockMask
from triptych.executor.native.machine import Machine
from triptych.executor.ranks import Share


@dataclass(slots=True, frozen=True)
class Table:
    """A block table where C can read it."""

    blocks: NDArray[np.int32]
    address: int


def table(blocks: tuple[int, ...]) -> Table:
    """Of a sequence's blocks."""
    array = numbers(blocks)
    return Table(array, array.ctypes.data)


@dataclass(slots=True, frozen=True)
class NativePlan:
    """All that the layers of one step share; int64, a number for each row."""

    places: Tensor
    """Where a row's key goes: how many numbers behind the layer's first one. -1: nowhere."""
    tables: Tensor
    """Addresses of block tables."""
    ends: Tensor
    """Tokens that a row sees."""
    sparse: tuple[SparseChunk, ...]
    """Those of the last rows."""
    fresh: Tensor | None
    """See ``attention.plan.fresh``; None if whoever made the plan has cleared them."""
    held: tuple[Table, ...]
    """What the addresses point to."""


class Places:
    """Where a token's key lies in a store of one layout."""

    def __init__(self, layout: Layout) -> None:
        layers, _, self.block_size, heads, size = layout.shape
        self.token = heads * size
        """Numbers of a token's keys in a layer."""
        self.block = layout.num_shards * layers * 2 * self.block_size * self.token
        """Numbers from a block to the next."""

    def of(self, block: int, token: int) -> int:
        """Of the token at the sequence's place ``token``, which is in ``block``."""
        return block * self.block + token % self.block_size * self.token


class NativePlanner:
    """Plans for one store's layout. Implements ``operations.SpanPlanner``."""

    def __init__(self, layout: Layout) -> None:
        self._places = Places(layout)
        self._table_of = ByIdentity(table)

    def plan(self, spans: Sequence[Span]) -> NativePlan:
        """See ``SpanPlanner``."""
        size, held = self._places.block_size, []
        rows = sum(span.end - span.start for span in spans)
        lines, row = np.empty((3, rows), dtype=np.int64), 0
        for span in spans:
            if len(span.blocks) * size < span.end or span.start >= span.end:
                raise InvariantBroken("a segment's block table does not cover its tokens")
            known = self._table_of(span.blocks)
            held.append(known)
            part = lines[:, row : row + span.end - span.start]
            tokens = np.arange(span.start, span.end)
            part[0] = self._places.block * known.blocks[tokens // size].astype(np.int64)
            part[0] += tokens % size * self._places.token
            part[1], part[2] = known.address, tokens + 1
            row += span.end - span.start
        begun = torch.tensor(fresh(spans, size), dtype=torch.int64)
        places, tables, ends = torch.from_numpy(lines).unbind(0)
        sparse = sparse_chunks(spans, size, "cpu")
        return NativePlan(places, tables, ends, sparse, begun, tuple(held))


class NativeAttention:
    """Attention of one rank over one KV store of shape (blocks * ranks, layers, 2, block_size,
    heads of a rank, head_dim). Implements ``operations.Attention``."""

    def __init__(self, store: Tensor, share: Share, layout: Layout, machine: Machine) -> None:
        self.share = share
        self._machine = machine
        self._runs = store.view(-1, share.num_ranks, *store.shape[1:])[:, share.rank]
        _, _, self._block_size, self._kv_heads, self._size = store.shape[1:]
        self._stride = Places(layout).block

    def begin(self, plan: NativePlan) -> None:
        """See ``Attention``."""
        if plan.fresh is not None:
            self.clear(plan.fresh)

    def clear(self, blocks: Tensor) -> None:
        """See ``Attention``."""
        if len(blocks):
            self._runs.index_fill_(0, blocks, 0)

    def run(
        self, qkv: Tensor, rotary: tuple[Tensor, Tensor], layer: int, plan: NativePlan
    ) -> Tensor:
        """See ``Attention``. ``qkv`` is overwritten."""
        size, rows = self._size, qkv.shape[0]
        heads = qkv.shape[1] // size - 2 * self._kv_heads
        memory = self._runs[0, layer].data_ptr()
        sizes = {
            "heads": heads,
            "kv_heads": self._kv_heads,
            "head_dim": size,
            "block_size": self._block_size,
            "block_stride": self._stride,
        }
        self._machine.do("write", rows, memory, (qkv, *rotary, plan.places), **sizes)
        out, dense = torch.empty(rows, heads * size), rows
        if plan.sparse:
            dense = plan.sparse[0].first
        if dense:
            reads = (qkv, memory, plan.tables, plan.ends)
            self._machine.do("attend", dense, out, reads, size**-0.5, **sizes)
        if plan.sparse:
            self._machine.settle()  # who selects reads queries and keys
        for chunk in plan.sparse:
            own = slice(chunk.first, chunk.last)
            query = qkv[own, : heads * size].view(-1, heads, size)
            keys = chunk.context(self._runs[:, layer, 0])
            lists = _lists(chunk.tiles(query, keys, size**-0.5))
            chosen = (qkv[own], memory, int(plan.tables[chunk.first]), lists)
            count, context = chunk.last - chunk.first, chunk.span.end
            self._machine.do(
                "attend_tiles", count, out[own], chosen, size**-0.5, inner=context, **sizes
            )
        return out


def _lists(mask: BlockMask) -> Tensor:
    """As ``attend_tiles`` of ``steps.c`` reads them."""
    entries = torch.cat((mask.counts[..., None], mask.indices), dim=-1)
    header = torch.tensor((mask.tile_q, mask.tile_k, len(entries), entries.shape[-1]))
    return torch.cat((header.int(), entries.flatten()))
