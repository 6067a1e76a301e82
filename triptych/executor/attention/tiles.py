"""Attention of one chunk to listed tiles of its keys, in plain PyTorch: what is left out is not
computed. ``kernels.reference.sparse`` says what it must give.

Knows tensors and lists; no store.
"""

import torch
from torch import Tensor
from torch.nn import functional

from triptych.executor.kernels.block_mask import BlockMask


def attend_tiles(query: Tensor, keys: Tensor, values: Tensor, mask: BlockMask) -> Tensor:
    """``query`` (rows, heads, head_dim), the last rows of the context that ``keys`` and ``values``
    (context, KV heads, head_dim) are; every row sees the keys of its tile's list up to its own.
    There is a list for every head, or for those that share keys. Returns (rows, heads, head_dim). A
    call for each tile of rows and each list of a tile."""
    (rows, heads, _), (context, kv_heads, _) = query.shape, keys.shape
    lists, before = mask.counts.shape[0], context - rows
    shared, out = heads // lists, torch.empty_like(query)
    counts, indices = mask.counts.tolist(), mask.indices.to(torch.int64)
    inside = torch.arange(mask.tile_k, device=query.device)
    for number in range(lists):
        head = number * kv_heads // lists
        own = slice(number * shared, (number + 1) * shared)
        for tile, count in enumerate(counts[number]):
            first, last = tile * mask.tile_q, min((tile + 1) * mask.tile_q, rows)
            places = (indices[number, tile, :count, None] * mask.tile_k + inside).flatten()
            places = places[places < before + last]
            positions = torch.arange(before + first, before + last, device=query.device)
            attended = functional.scaled_dot_product_attention(
                query[first:last, own].transpose(0, 1),
                keys[places, head].expand(shared, -1, -1),
                values[places, head].expand(shared, -1, -1),
                places <= positions[:, None],
            )
            out[first:last, own] = attended.transpose(0, 1)
    return out
