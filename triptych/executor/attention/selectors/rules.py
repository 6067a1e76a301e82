"""What holds for every selector: text rows are dense, sink and diagonal stay, short prompts are
left alone. And how good a selection is: its density, and the attention that it keeps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from triptych.executor.attention.selectors.view import View, VisualSpan
from triptych.executor.kernels.block_mask import TILE, BlockMask


class Selector(Protocol):
    """Chooses key tiles for a chunk of one sequence."""

    def select(
        self, query: Tensor, keys: Tensor, spans: Sequence[VisualSpan], *, scale: float
    ) -> BlockMask:
        """Of ``query`` (rows, heads, head_dim), the last rows of the context, and ``keys``
        (context, KV heads, head_dim), both as attention sees them. Tokens that no span names are
        text. Raises InvariantBroken where spans or shapes do not fit together."""
        ...


class Pattern(Protocol):
    """What differs between selectors."""

    def keep(self, view: View) -> Tensor:
        """bool (heads, query tiles, key tiles). The rules are added to it."""
        ...


@dataclass(frozen=True, slots=True)
class Rules:
    """What no pattern may change."""

    tile_q: int = TILE
    tile_k: int = TILE
    min_tokens: int = 8192
    """Contexts shorter than this are dense. Not measured yet on a GPU."""
    sink_tiles: int = 1
    """First tiles of the context that every row keeps."""
    is_shared: bool = False
    """Whether the heads that share keys also share a mask: all that any of them keeps."""

    def apply(
        self,
        pattern: Pattern,
        query: Tensor,
        keys: Tensor,
        spans: Sequence[VisualSpan],
        scale: float,
    ) -> BlockMask:
        """The mask of a pattern under these rules."""
        view = View(query, keys, spans, scale, self.tile_q, self.tile_k)
        masks = view.keys.shape[1] if self.is_shared else view.heads
        if view.context < self.min_tokens or view.rows == 0:
            keep = view.causal.expand(masks, -1, -1)
        else:
            keep = pattern.keep(view)
            if self.is_shared:
                keep = torch.unflatten(keep, 0, (masks, view.group)).any(1)
            keep = keep | view.diagonal | view.has_text[:, None]
            keep[..., : self.sink_tiles] = True
            keep &= view.causal
        return BlockMask.of(keep, self.tile_q, self.tile_k)


RULES = Rules()
"""The defaults."""


def smallest_cover(weights: Tensor, tau: float) -> Tensor:
    """bool like ``weights``: along the last dimension the fewest of the greatest whose sum is at
    least ``tau`` of the whole. A greater ``tau`` keeps what a smaller one keeps."""
    ordered, order = weights.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    is_needed = (before < tau * ordered.sum(-1, keepdim=True)) & (ordered > 0)
    return torch.zeros_like(is_needed).scatter_(-1, order, is_needed)


def density(mask: BlockMask, rows: int, context: int) -> float:
    """Share of causal tiles that is kept, all heads and rows of one sequence together."""
    last = torch.arange(mask.counts.shape[1]) * mask.tile_q + mask.tile_q - 1
    last = last.clamp_max(rows - 1) + (context - rows)
    causal = (last // mask.tile_k + 1).sum().item() * mask.counts.shape[0]
    return mask.counts.sum().item() / causal


def recall(mask: BlockMask, view: View, rows: Tensor) -> Tensor:
    """Share of the true softmax's mass that lies in kept tiles: float32 (heads, rows), exact, for
    the given rows of the view."""
    return (view.weights(rows) * kept_keys(mask, view, rows)).sum(-1)


def kept_keys(mask: BlockMask, view: View, rows: Tensor) -> Tensor:
    """bool (heads, rows, context): which keys lie in tiles that the given rows keep."""
    kept = mask.keep(view.context).repeat_interleave(view.heads // mask.counts.shape[0], 0)
    kept = kept[:, rows // mask.tile_q].repeat_interleave(mask.tile_k, 2)
    return kept[..., : view.context]
