"""Which spans of a step attend to a part of their context only, and who chooses it.

Knows spans, pictures and the configuration; no store, and no way to compute.
"""

from triptych.core.config_sparse import NONE, SparseConfig
from triptych.executor.attention.plan import Span
from triptych.executor.attention.selectors.block_filter import BlockFilter
from triptych.executor.attention.selectors.local_and_history import LocalAndHistory
from triptych.executor.attention.selectors.modality import Modality
from triptych.executor.attention.selectors.rules import Rules, Selector
from triptych.executor.attention.selectors.vertical_slash import VerticalSlash
from triptych.executor.attention.selectors.xattention import XAttention


class Sparse:
    """What a configuration says of sparse prefill."""

    def __init__(self, selector: Selector, rules: Rules) -> None:
        self._selector = selector
        self._rules = rules

    def applied(self, span: Span) -> Span:
        """With the selector, if that could leave anything out: the context is long enough, and at
        least one tile of rows is all picture."""
        return span._replace(selector=self._selector) if self._takes(span) else span

    def _takes(self, span: Span) -> bool:
        start, end, size = span.start, span.end, self._rules.tile_q
        if end - start == 1 or end < self._rules.min_tokens:
            return False
        tiles = ((first, min(first + size, end)) for first in range(start, end, size))
        return any(
            picture.start <= first and last <= picture.end
            for first, last in tiles
            for picture in span.pictures
        )


def sparse_of(config: SparseConfig) -> Sparse | None:
    """What ``config`` asks for; None for dense attention."""
    rules = Rules(config.tile, config.tile, config.min_tokens)
    columns, diagonals = config.columns, config.diagonals
    selectors: dict[str, Selector] = {
        "xattention": XAttention(config.tau, rules=rules),
        "block_filter": BlockFilter(config.tau, rules=rules),
        "vertical_slash": VerticalSlash(columns, diagonals, rules=rules),
        "modality": Modality(columns, diagonals, rules=rules),
        "local_and_history": LocalAndHistory(config.local_tokens, config.history, rules=rules),
    }
    return None if config.selector == NONE else Sparse(selectors[config.selector], rules)
