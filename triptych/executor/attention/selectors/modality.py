"""Grids and columns that visual rows show (after MMInference, arXiv 2504.16083, section 3)."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from triptych.executor.attention.selectors.lags import (
    column_tiles,
    diagonal_tiles,
    lag_mass,
    most,
)
from triptych.executor.attention.selectors.rules import RULES, Rules
from triptych.executor.attention.selectors.view import View, VisualSpan
from triptych.executor.kernels.block_mask import BlockMask

_PERIODS = 4
"""Periods that are tried at most, the commonest first."""


@dataclass(frozen=True, slots=True)
class Modality:
    """Estimated from the last visual rows, which alone are thinned out: text rows, whose attention
    is another, say nothing here (the paper's query boundary).

    Where a head's diagonals come back with the period of frames, of pictures or of rows, it is a
    grid head: it keeps the band of that period and phase in which most of the weight lies, at every
    period. Any other head keeps its heaviest diagonals. Both keep the heaviest columns.

    The paper permutes tokens so that a grid of any period becomes blocks. Here tiles stay in the
    cache's order: a period must be longer than a key tile, or its band would be everything, and
    rows of one picture are seldom that long. Its offline choice of patterns is made online here.
    """

    columns: int = 64
    diagonals: int = 256
    probes: int = 64
    band: int = 16
    """Lags on either side of a grid's phase."""
    grid_share: float = 0.5
    """Weight beyond the nearest tile that a grid must hold."""
    rules: Rules = RULES

    def select(
        self, query: Tensor, keys: Tensor, spans: Sequence[VisualSpan], *, scale: float
    ) -> BlockMask:
        """See ``rules.Selector``."""
        return self.rules.apply(self, query, keys, spans, scale)

    def keep(self, view: View) -> Tensor:
        """See ``rules.Pattern``."""
        rows = view.probes(self.probes, is_visual=True)
        if not len(rows):
            return view.diagonal.expand(view.heads, -1, -1)
        weights = view.weights(rows)
        mass = lag_mass(weights, rows + view.context - view.rows)
        lags = most(mass, self.diagonals)
        keep = diagonal_tiles(lags, lags, view)
        best = torch.full((view.heads,), self.grid_share, device=view.device)
        for period in self.periods(view):
            share, phase = self.fit(mass, period, view.tile_k)
            low, high = self._band(phase, period, view.context)
            is_better = share > best
            best = torch.where(is_better, share, best)
            keep = torch.where(is_better[:, None, None], diagonal_tiles(low, high, view), keep)
        return keep | column_tiles(most(weights.sum(1), self.columns), view)

    def periods(self, view: View) -> list[int]:
        """Distances, in tokens, at which pictures, frames or rows of a grid come back."""
        found: Counter[int] = Counter()
        for span, after in zip(view.spans, [*view.spans[1:], None], strict=True):
            frames, rows, columns = span.grid
            found.update([columns] * (rows - 1) + [rows * columns] * (frames - 1))
            if after is not None and after.grid == span.grid:
                found[after.start - span.start] += 1
        wide = max(view.tile_k, 2 * self.band + 1)
        usable = [period for period, _ in found.most_common() if wide < period < view.context]
        return usable[:_PERIODS]

    def fit(self, mass: Tensor, period: int, near: int) -> tuple[Tensor, Tensor]:
        """Of weight by lag (heads, context): the share of what lies ``near`` or more behind that
        the best phase's band holds, and that phase; both (heads,)."""
        far = mass.clone()
        far[:, :near] = 0.0
        folded = functional.pad(far, (0, -far.shape[1] % period)).view(len(far), -1, period).sum(1)
        ring = torch.cat((folded[:, -self.band :], folded, folded[:, : self.band]), 1)
        half = self.band + 1
        # Twice half a band: the middle weighs most, so that a peak comes to lie in the middle.
        phase = ring.unfold(1, half, 1).sum(-1).unfold(1, half, 1).sum(-1).argmax(1)
        held = ring.unfold(1, 2 * self.band + 1, 1).sum(-1).gather(1, phase[:, None])[:, 0]
        return held / far.sum(1).clamp_min(1e-9), phase

    def _band(self, phase: Tensor, period: int, context: int) -> tuple[Tensor, Tensor]:
        """Lowest and highest lags of every return: int64 (heads, returns). The rows' own
        neighbourhood is a band too."""
        returns = torch.arange(-period, context + period, period, device=phase.device)
        middle = phase[:, None] + returns
        low, high = (middle - self.band).clamp_min(0), middle + self.band
        near = torch.zeros_like(phase)[:, None]
        return torch.cat((near, low), 1), torch.cat((near + self.band, high), 1)
