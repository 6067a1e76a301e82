"""Twin of ``sparse_prefill``: dense attention under the tiles' mask, spread out to elements."""

import torch
from torch import Tensor

from triptych.executor.kernels.block_mask import BlockMask


def sparse_prefill(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    table: Tensor,
    row_starts: Tensor,
    ends: Tensor,
    blocks: BlockMask,
    *,
    scale: float,
    key_scales: Tensor | None = None,
    value_scales: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """See ``kernels.sparse_prefill.sparse_prefill``. In float32; float64 of a float64 query."""
    if out is None:
        out = torch.empty_like(query)
    first_tile = 0
    starts = row_starts.tolist()
    for index, end in enumerate(ends.tolist()):
        rows = slice(starts[index], starts[index + 1])
        length = rows.stop - rows.start
        num_tiles = -(-length // blocks.tile_q)
        tiles = slice(first_tile, first_tile + num_tiles)
        first_tile += num_tiles
        if length == 0:
            continue
        own = BlockMask(
            blocks.counts[:, tiles], blocks.indices[:, tiles], blocks.tile_q, blocks.tile_k
        )
        out[rows] = attend(
            query[rows],
            context_of(keys, table[index], end, key_scales),
            context_of(values, table[index], end, value_scales),
            element_mask(own, length, end),
            scale,
        )
    return out


def context_of(pages: Tensor, table: Tensor, end: int, scales: Tensor | None) -> Tensor:
    """The first ``end`` tokens that a block table names: (end, kv heads, head_dim)."""
    size = pages.shape[1]
    used = table[: -(-end // size)].long()
    rows = pages[used].flatten(0, 1)[:end]
    return rows if scales is None else rows.float() * scales[used].flatten(0, 1)[:end, :, None]


def element_mask(blocks: BlockMask, length: int, end: int) -> Tensor:
    """bool (mask heads, length, end): kept tiles, and of those what is not in the future."""
    keep = blocks.keep(end).repeat_interleave(blocks.tile_q, 1)[:, :length]
    keep = keep.repeat_interleave(blocks.tile_k, 2)[:, :, :end]
    position = torch.arange(end, device=keep.device)
    return keep & (position <= position[end - length :, None])


def attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Softmax attention of (rows, heads, head_dim) under bool (mask heads, rows, keys); a row that
    sees nothing is zero."""
    dtype = torch.promote_types(query.dtype, torch.float32)
    heads, kv_heads = query.shape[1], keys.shape[1]
    by_head = query.to(dtype).transpose(0, 1)
    keys = keys.to(dtype).transpose(0, 1).repeat_interleave(heads // kv_heads, 0)
    values = values.to(dtype).transpose(0, 1).repeat_interleave(heads // kv_heads, 0)
    mask = mask.repeat_interleave(heads // mask.shape[0], 0)
    scores = (by_head @ keys.transpose(1, 2) * scale).masked_fill_(~mask, -torch.inf)
    weights = scores.softmax(-1).nan_to_num_(0.0)
    return (weights @ values).transpose(0, 1).to(query.dtype)
