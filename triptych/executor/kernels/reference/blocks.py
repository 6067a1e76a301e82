"""Twins of the movers of blocks and rows."""

import torch
from torch import Tensor


def gather_blocks(
    store: Tensor,
    index: Tensor,
    out: Tensor,
    *,
    layers: range | None = None,
    shard: int | None = None,
    num_shards: int = 1,
) -> Tensor:
    """See ``kernels.blocks``."""
    part, taken = _part(store, layers, shard, num_shards), index >= 0
    out.view(len(index), part.shape[1], *out.shape[1:])[taken] = part[index[taken]]
    return out


def scatter_blocks(
    staging: Tensor,
    store: Tensor,
    index: Tensor,
    *,
    layers: range | None = None,
    shard: int | None = None,
    num_shards: int = 1,
) -> Tensor:
    """See ``kernels.blocks``."""
    part, taken = _part(store, layers, shard, num_shards), index >= 0
    source = staging.view(len(index), part.shape[1], *staging.shape[1:])
    part[index[taken]] = source[taken]
    return store


def gather_rows(
    store_rows: Tensor, index: Tensor, out: Tensor, *, targets: Tensor | None = None
) -> Tensor:
    """See ``kernels.blocks``."""
    if targets is None:
        targets = torch.arange(len(index), device=index.device)
    taken = (index >= 0) & (targets >= 0)
    out[targets[taken]] = store_rows[index[taken]]
    return out


def _part(store: Tensor, layers: range | None, shard: int | None, num_shards: int) -> Tensor:
    """The view (blocks, shards, layers, ...) of what is asked for."""
    span = slice(None) if layers is None else slice(layers.start, layers.stop)
    shards = slice(None) if shard is None else slice(shard, shard + 1)
    return store.view(-1, num_shards, *store.shape[1:])[:, shards, span]
