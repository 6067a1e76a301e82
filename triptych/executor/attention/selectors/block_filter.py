"""Tiles by the product of their means, where means say enough (SpargeAttn, arXiv 2502.18137)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from triptych.executor.attention.selectors.rules import RULES, Rules, smallest_cover
from triptych.executor.attention.selectors.view import View, VisualSpan
from triptych.executor.kernels.block_mask import BlockMask


@dataclass(frozen=True, slots=True)
class BlockFilter:
    """Each tile of queries and of keys is compressed to its mean; softmax over the means' products;
    a query tile keeps the key tiles with ``tau`` of its weight. A tile whose rows are not alike is
    not described by its mean: such a key tile is kept by all, such a query tile keeps all.

    Alike are rows whose mean cosine among each other, here the squared length of the mean of the
    unit vectors, is at least ``similarity`` (the paper divides by the greatest product instead).
    The paper's second filter, which skips products inside the kernel, is not part of this.
    """

    tau: float = 0.9
    similarity: float = 0.5
    rules: Rules = RULES

    def select(
        self, query: Tensor, keys: Tensor, spans: Sequence[VisualSpan], *, scale: float
    ) -> BlockMask:
        """See ``rules.Selector``."""
        return self.rules.apply(self, query, keys, spans, scale)

    def keep(self, view: View) -> Tensor:
        """See ``rules.Pattern``."""
        parts = []
        for query, keys in view.groups(view.query):
            rows, rows_alike = self._compress(view.tiles_of(query, view.tile_q), view.rows)
            columns, keys_alike = self._compress(view.tiles_of(keys, view.tile_k), view.context)
            scores = rows @ columns.transpose(0, 1) * view.scale
            is_scored = view.causal & keys_alike
            weights = scores.masked_fill_(~is_scored, -torch.inf).softmax(-1).nan_to_num_(0.0)
            kept = smallest_cover(weights, self.tau)
            parts.append(kept | ~keys_alike | ~rows_alike[..., None])
        return torch.cat(parts)

    def _compress(self, tiles: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Means (..., tiles, head_dim) of (..., tiles, size, head_dim), of which ``count`` rows are
        there, and whether the rows of each are alike."""
        size = tiles.shape[-2]
        starts = torch.arange(tiles.shape[-3], device=tiles.device) * size
        sizes = (count - starts).clamp_max(size)[:, None]
        cosine = (functional.normalize(tiles, dim=-1).sum(-2) / sizes).square().sum(-1)
        return tiles.sum(-2) / sizes, cosine >= self.similarity
