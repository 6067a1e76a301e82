"""The device's half of attention: write keys and values, gather pages, scaled dot product.

Plain PyTorch; the specification of every other implementation. Knows shapes; no lengths: those are
in the plan.
"""

import torch
from torch import Tensor
from torch.nn import functional

from triptych.executor.attention.plan import AttentionPlan, DecodeGroup, Prefill, SparseChunk
from triptych.executor.attention.tiles import attend_tiles
from triptych.executor.kv import pages_of
from triptych.executor.ranks import WHOLE, Share
from triptych.executor.rotary import rotate_by


class PagedAttention:
    """Attention of one rank over one KV store of shape (blocks * ranks, layers, 2, block_size,
    heads of a rank, width), of numbers or codes (``Layout.dtype``). Nothing but the rank's own run
    of each block is read or written."""

    def __init__(self, store: Tensor, share: Share = WHOLE, dtype: str = "float32") -> None:
        self.share = share
        self._runs = store.view(-1, share.num_ranks, *store.shape[1:])[:, share.rank]
        self._pages = pages_of(store, share, dtype)
        self._heads, self._size = self._pages.heads, self._pages.size
        self._stride = share.num_ranks * store.shape[1] * 2
        """Pages from a block to the next."""

    def begin(self, plan: AttentionPlan) -> None:
        """Clear the blocks that a step begins. Once a step, before the first layer's ``run``."""
        self.clear(plan.fresh)

    def clear(self, blocks: Tensor) -> None:
        """Fill whole ``blocks`` (int64) of all layers with zeros."""
        if len(blocks):
            self._runs.index_fill_(0, blocks, 0)

    def run(
        self, qkv: Tensor, rotary: tuple[Tensor, Tensor], layer: int, plan: AttentionPlan
    ) -> Tensor:
        """Turn the queries and keys of ``qkv`` (tokens, (heads + 2 * KV heads) * head_dim) by
        ``rotary`` (tokens, head_dim each: ``rotary.doubled``), write the keys and values of
        ``layer`` to their rows and attend. Returns (tokens, heads * head_dim)."""
        tokens = qkv.shape[0]
        by_head = qkv.view(tokens, -1, self._size)
        turned = rotate_by(by_head[:, : -self._heads], *(part.unsqueeze(1) for part in rotary))
        query, key = turned[:, : -self._heads], turned[:, -self._heads :]
        value = by_head[:, -self._heads :]
        self._pages.write(plan.keys[layer], key)
        self._pages.write(plan.values[layer], value)
        parts = [self._decode(query, layer, group) for group in plan.decode]
        parts += [self._prefill(query, key, value, layer, span) for span in plan.prefill]
        parts += [self._sparse(query[one.first : one.last], layer, one) for one in plan.sparse]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _decode(self, query: Tensor, layer: int, group: DecodeGroup) -> Tensor:
        """Heads that share keys are the queries of one batch: no key is repeated."""
        spans = group.last - group.first
        gathered = self._pages.read(group.pages[layer], query.dtype)
        keys, values = gathered.view(2, spans, -1, self._heads, self._size).transpose(2, 3)
        queries = query[group.first : group.last].reshape(spans, self._heads, -1, self._size)
        mask = group.mask.to(query.dtype)
        attended = functional.scaled_dot_product_attention(queries, keys, values, mask)
        return attended.reshape(spans, -1)

    def _prefill(
        self, query: Tensor, key: Tensor, value: Tensor, layer: int, span: Prefill
    ) -> Tensor:
        rows = slice(span.first, span.last)
        queries = query[rows].transpose(0, 1)[None]
        if span.mask is None:
            keys, values = (
                self._pages.seen(one[rows]).transpose(0, 1)[None] for one in (key, value)
            )
        else:
            gathered = self._pages.read(span.pages[layer], query.dtype)
            context = gathered.view(2, -1, self._heads, self._size)[:, : span.context]
            keys, values = context.transpose(1, 2)[:, None]
        attended = functional.scaled_dot_product_attention(
            queries,
            keys,
            values,
            span.mask,
            is_causal=span.mask is None,
            enable_gqa=queries.shape[1] != self._heads,
        )
        return attended[0].transpose(0, 1).reshape(span.last - span.first, -1)

    def _sparse(self, query: Tensor, layer: int, chunk: SparseChunk) -> Tensor:
        first = chunk.blocks * self._stride + 2 * layer
        keys, values = (
            self._pages.read(pages, query.dtype).flatten(0, 1)[: chunk.span.end]
            for pages in (first, first + 1)
        )
        tiles = chunk.tiles(query, keys, self._size**-0.5)
        return attend_tiles(query, keys, values, tiles).flatten(1)
