"""Tiles by the sums of their antidiagonals (XAttention, arXiv 2503.16428, section 3)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from triptych.executor.attention.selectors.rules import RULES, Rules, smallest_cover
from triptych.executor.attention.selectors.view import View, VisualSpan
from triptych.executor.kernels.block_mask import BlockMask


@dataclass(frozen=True, slots=True)
class XAttention:
    """In every square of ``stride`` rows and keys one antidiagonal is scored, at ``1 / stride`` of
    the work of all scores: it meets every column. Of diagonals it meets those of odd lag: row plus
    key is ``stride - 1`` there, so a sharp diagonal of even lag is seen only by its neighbours.
    Rows of squares are weighted by softmax; a query tile keeps tiles with ``tau`` of its weight.

    The paper's minimum threshold by head, found offline, is not part of this: one ``tau`` for all.
    """

    tau: float = 0.9
    stride: int = 16
    """A divisor of both tile sizes."""
    rules: Rules = RULES

    def select(
        self, query: Tensor, keys: Tensor, spans: Sequence[VisualSpan], *, scale: float
    ) -> BlockMask:
        """See ``rules.Selector``."""
        return self.rules.apply(self, query, keys, spans, scale)

    def keep(self, view: View) -> Tensor:
        """See ``rules.Pattern``."""
        return smallest_cover(self.mass(view), self.tau)

    def mass(self, view: View) -> Tensor:
        """Estimated weight of tiles, float32 (heads, query tiles, key tiles), rows sum to 1."""
        step = self.stride
        first_row = torch.arange(0, view.query_tiles * view.tile_q, step, device=view.device)
        first_key = torch.arange(0, view.key_tiles * view.tile_k, step, device=view.device)
        is_row = first_row < view.rows
        last = (first_row + step - 1).clamp_max(view.rows - 1) + (view.context - view.rows)
        hidden = first_key > last[:, None]
        parts = []
        for query, keys in view.groups(view.query):
            rows = view.tiles_of(query, view.tile_q).flatten(1, 2)
            rows = torch.unflatten(rows, 1, (-1, step)).flip(2).flatten(2)
            columns = view.tiles_of(keys, view.tile_k).flatten(0, 1)
            columns = torch.unflatten(columns, 0, (-1, step)).flatten(1)
            scores = rows @ columns.transpose(0, 1) * (view.scale / step)
            weights = scores.masked_fill_(hidden, -torch.inf).softmax(-1) * is_row[:, None]
            by_tile = torch.unflatten(weights, 2, (view.key_tiles, -1)).sum(-1)
            parts.append(torch.unflatten(by_tile, 1, (view.query_tiles, -1)).sum(2))
        mass = torch.cat(parts)
        return mass / mass.sum(-1, keepdim=True)
