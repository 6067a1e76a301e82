"""Columns and diagonals of attention, measured from some rows and spread out to tiles.

A *lag* is a row's position minus a key's: a diagonal is all pairs of one lag.
"""

import torch
from torch import Tensor

from triptych.executor.attention.selectors.view import View


def lag_mass(weights: Tensor, positions: Tensor) -> Tensor:
    """Weight by lag: float32 (heads, context), of ``weights`` (heads, rows, context) of rows at
    context ``positions``."""
    context = weights.shape[-1]
    lags = positions[:, None] - torch.arange(context, device=weights.device)
    # What lies in the future weighs nothing; its lag only has to be a place.
    places = lags.clamp_min(0).expand_as(weights).flatten(1)
    return weights.new_zeros(weights.shape[0], context).scatter_add_(1, places, weights.flatten(1))


def most(mass: Tensor, count: int) -> Tensor:
    """int64 (heads, count or fewer): places of the greatest along the last dimension."""
    return mass.topk(min(count, mass.shape[-1]), dim=-1).indices


def column_tiles(columns: Tensor, view: View) -> Tensor:
    """bool (heads, query tiles, key tiles): tiles with any of the ``columns`` (heads, n)."""
    table = columns.new_zeros(columns.shape[0], view.key_tiles, dtype=torch.bool)
    table.scatter_(1, columns // view.tile_k, True)
    return table[:, None].expand(-1, view.query_tiles, -1)


def diagonal_tiles(low: Tensor, high: Tensor, view: View) -> Tensor:
    """bool (heads, query tiles, key tiles): tiles that any diagonal with a lag from ``low`` to
    ``high``, both (heads, n), meets in any row of a query tile."""
    first = view.first[:, None] - high[:, None]
    last = view.last[:, None] - low[:, None]
    is_there = (last >= 0) & (low <= high)[:, None]
    # Each diagonal opens a run of tiles and closes it: inside are those opened more often.
    opened = torch.where(is_there, first.clamp_min(0) // view.tile_k, view.key_tiles)
    closed = torch.where(is_there, last // view.tile_k + 1, view.key_tiles)
    edges = torch.zeros(
        *first.shape[:2], view.key_tiles + 1, dtype=torch.int32, device=first.device
    )
    ones = edges.new_ones(()).expand(first.shape)
    edges.scatter_add_(2, opened.clamp_max(view.key_tiles), ones)
    edges.scatter_add_(2, closed.clamp_max(view.key_tiles), -ones)
    return edges.cumsum(2)[..., : view.key_tiles] > 0
