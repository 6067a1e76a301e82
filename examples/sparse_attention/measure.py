"""What a selection of tiles costs and what it loses, on given queries, keys and values.

Knows selectors and exact softmax. Does not know where the tensors come from.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from triptych.executor.attention.selectors.rules import (
    Rules,
    Selector,
    density,
    kept_keys,
    smallest_cover,
)
from triptych.executor.attention.selectors.view import View, VisualSpan
from triptych.executor.kernels.block_mask import BlockMask

SAMPLE = 192
"""Rows that are looked at, of each sequence."""
_AT_ONCE = 256
_STEP = 4


@dataclass(frozen=True)
class Loss:
    """Of one selection: by head and sampled row."""

    density: float
    recall: Tensor
    error: Tensor


@dataclass(frozen=True)
class ExactTiles:
    """The bound of what tiles can do: for every query tile the fewest key tiles with ``tau`` of its
    true weight, that of every fourth row. Costs about what dense attention costs."""

    tau: float
    rules: Rules

    def select(
        self, query: Tensor, keys: Tensor, spans: Sequence[VisualSpan], *, scale: float
    ) -> BlockMask:
        """See ``rules.Selector``."""
        return self.rules.apply(self, query, keys, spans, scale)

    def keep(self, view: View) -> Tensor:
        """See ``rules.Pattern``."""
        return smallest_cover(tile_mass(view), self.tau)


_MASSES: dict[int, tuple[Tensor, Tensor]] = {}


def tile_mass(view: View) -> Tensor:
    """True weight of tiles: float32 (heads, query tiles, key tiles). The last one is remembered."""
    known = _MASSES.get(0)
    if known is not None and known[0] is view.query:
        return known[1]
    mass = torch.zeros(view.heads, view.query_tiles, view.key_tiles * view.tile_k)
    for start in range(0, view.rows, _STEP * _AT_ONCE):
        rows = torch.arange(start, min(start + _STEP * _AT_ONCE, view.rows), _STEP)
        mass[..., : view.context].index_add_(1, rows // view.tile_q, view.weights(rows))
    summed = mass.view(view.heads, view.query_tiles, view.key_tiles, view.tile_k).sum(-1)
    _MASSES[0] = (view.query, summed)
    return summed


class Sample:
    """Rows of one sequence whose tiles hold no text, and their exact attention."""

    def __init__(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        spans: Sequence[VisualSpan],
        scale: float,
        rules: Rules,
    ) -> None:
        self.view = View(query, keys, spans, scale, rules.tile_q, rules.tile_k)
        dice = torch.Generator().manual_seed(1)
        visual = self.view.probes(self.view.rows, is_visual=True)
        visual = visual[~self.view.has_text[visual // rules.tile_q]]
        self._rows = visual[torch.randperm(len(visual), generator=dice)[:SAMPLE]].sort().values
        self._weights = self.view.weights(self._rows)
        self._values = values.transpose(0, 1).repeat_interleave(self.view.group, 0).float()
        self._dense = self._weights @ self._values

    def loss(self, selector: Selector) -> Loss:
        """What the selector keeps, and how far the sampled rows' outputs go astray."""
        view = self.view
        mask = selector.select(view.query, view.keys, view.spans, scale=view.scale)
        kept = self._weights * kept_keys(mask, view, self._rows)
        recall = kept.sum(-1)
        output = kept @ self._values / recall[..., None]
        error = (output - self._dense).norm(dim=-1) / self._dense.norm(dim=-1)
        return Loss(density(mask, view.rows, view.context), recall, error)
