"""Columns and diagonals that the last rows show (MInference, arXiv 2407.02490, section 3.2)."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from triptych.executor.attention.selectors.lags import (
    column_tiles,
    diagonal_tiles,
    lag_mass,
    most,
)
from triptych.executor.attention.selectors.rules import RULES, Rules
from triptych.executor.attention.selectors.view import View, VisualSpan
from triptych.executor.kernels.block_mask import BlockMask


@dataclass(frozen=True, slots=True)
class VerticalSlash:
    """The exact weights of the last ``probes`` rows; the heaviest columns and diagonals of each
    head; every tile that one of them meets.

    The paper reads single columns beside tiles, so that its columns are cheap; here each brings its
    whole tile. Its choice of a pattern for each head, made offline, is not part of this.
    """

    columns: int = 64
    diagonals: int = 256
    probes: int = 64
    rules: Rules = RULES

    def select(
        self, query: Tensor, keys: Tensor, spans: Sequence[VisualSpan], *, scale: float
    ) -> BlockMask:
        """See ``rules.Selector``."""
        return self.rules.apply(self, query, keys, spans, scale)

    def keep(self, view: View) -> Tensor:
        """See ``rules.Pattern``."""
        rows = view.probes(self.probes, is_visual=False)
        weights = view.weights(rows)
        lags = most(lag_mass(weights, rows + view.context - view.rows), self.diagonals)
        columns = most(weights.sum(1), self.columns)
        return column_tiles(columns, view) | diagonal_tiles(lags, lags, view)
