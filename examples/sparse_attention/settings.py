"""Which selectors are compared, at which settings, for small tiles and for those of a GPU."""

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from examples.sparse_attention.measure import ExactTiles
from triptych.executor.attention.selectors.block_filter import BlockFilter
from triptych.executor.attention.selectors.local_and_history import LocalAndHistory
from triptych.executor.attention.selectors.modality import Modality
from triptych.executor.attention.selectors.rules import Rules, Selector
from triptych.executor.attention.selectors.vertical_slash import VerticalSlash
from triptych.executor.attention.selectors.xattention import XAttention

BOUND = "exact tiles (bound)"


class Setting(NamedTuple):
    """One row of the table."""

    family: str
    label: str
    selector: Selector


def small() -> list[Setting]:
    """For prompts of some hundred tokens: tiles of 16."""
    rules = Rules(16, 16, min_tokens=0)
    columns = ((1, 2), (4, 16), (16, 32))
    return [
        *_taus("xattention", (0.5, 0.7, 0.8, 0.9), lambda tau: XAttention(tau, 8, rules)),
        *_taus("block_filter", (0.3, 0.6, 0.9), lambda tau: BlockFilter(tau, 0.3, rules)),
        *_columns(columns, rules, band=2),
        *_shares(64, "pooled", (0.0, 0.125, 0.5), rules),
        *_taus(BOUND, (0.5, 0.7, 0.8, 0.9, 0.95), lambda tau: ExactTiles(tau, rules)),
    ]


def large() -> list[Setting]:
    """For thousands of tokens: tiles of 128."""
    rules = Rules(min_tokens=0)
    columns = ((4, 8), (16, 32), (32, 128), (64, 512))
    return [
        *_taus("xattention", (0.7, 0.8, 0.9, 0.95, 0.98), lambda tau: XAttention(tau, 16, rules)),
        *_taus("block_filter", (0.5, 0.8, 0.9, 0.95), lambda tau: BlockFilter(tau, 0.1, rules)),
        *_columns(columns, rules, band=16),
        *_shares(1120, "pooled", (0.0, 0.125, 0.25, 0.5), rules),
        *_shares(1120, "strided", (0.125, 0.25, 0.5), rules),
        *_taus(BOUND, (0.7, 0.8, 0.9, 0.95, 0.98), lambda tau: ExactTiles(tau, rules)),
    ]


def _taus(
    family: str, taus: tuple[float, ...], make: Callable[[float], Selector]
) -> Iterator[Setting]:
    for tau in taus:
        yield Setting(family, f"tau {tau:g}", make(tau))


def _columns(some: tuple[tuple[int, int], ...], rules: Rules, band: int) -> Iterator[Setting]:
    for columns, diagonals in some:
        label = f"{columns} columns, {diagonals} diagonals"
        yield Setting("vertical_slash", label, VerticalSlash(columns, diagonals, rules=rules))
    for columns, diagonals in some:
        label = f"{columns} columns, {diagonals} diagonals, band {band}"
        yield Setting("modality", label, Modality(columns, diagonals, band=band, rules=rules))


def _shares(
    local: int, history: Literal["strided", "pooled"], shares: tuple[float, ...], rules: Rules
) -> Iterator[Setting]:
    for share in shares:
        selector = LocalAndHistory(local, share, history, rules)
        label = f"runs of {local}, {share:g} of history"
        yield Setting(f"local_and_history, {history}", label, selector)
