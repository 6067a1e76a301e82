"""The own run of tokens whole, what lies before it in part (after Video-XL-2, arXiv 2506.19225)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from triptych.executor.attention.selectors.rules import RULES, Rules
from triptych.executor.attention.selectors.view import View, VisualSpan
from triptych.executor.kernels.block_mask import BlockMask


@dataclass(frozen=True, slots=True)
class LocalAndHistory:
    """Runs of ``local`` tokens, counted from the start of the context, are dense in themselves. Of
    the tiles before its run a query tile keeps ``share``: evenly spaced ones, or those whose mean
    key agrees most with its mean query.

    The paper's model was trained for its pattern, with time stamps between runs; others were not.
    """

    local: int = 2048
    share: float = 0.125
    history: Literal["strided", "pooled"] = "pooled"
    rules: Rules = RULES

    def select(
        self, query: Tensor, keys: Tensor, spans: Sequence[VisualSpan], *, scale: float
    ) -> BlockMask:
        """See ``rules.Selector``."""
        return self.rules.apply(self, query, keys, spans, scale)

    def keep(self, view: View) -> Tensor:
        """See ``rules.Pattern``."""
        run = view.first // self.local * self.local
        number = torch.arange(view.key_tiles, device=view.device)
        past = (number + 1) * view.tile_k <= run[:, None]
        if self.history == "strided":
            # The n-th tile is kept where n * share reaches the next whole number.
            kept = ((number + 1) * self.share).floor() > (number * self.share).floor()
            return (~past | kept).expand(view.heads, -1, -1)
        wanted = (past.sum(1) * self.share).ceil()
        rank = self._scores(view).masked_fill_(~past, -torch.inf).argsort(-1, descending=True)
        chosen = torch.empty_like(rank).scatter_(2, rank, number.expand_as(rank))
        return ~past | (chosen < wanted[:, None])

    def _scores(self, view: View) -> Tensor:
        """Products of means: float32 (heads, query tiles, key tiles)."""
        parts = []
        for query, keys in view.groups(view.query):
            rows = view.tiles_of(query, view.tile_q).sum(-2)
            columns = view.tiles_of(keys, view.tile_k).sum(-2)
            parts.append(rows @ columns.transpose(0, 1))
        return torch.cat(parts)
