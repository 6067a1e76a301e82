"""Which key tiles each query tile attends to: lists of tiles, and the same as a table of bools.

Knows tiles and counts; not why a tile was kept, nor what lies in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from triptych.core.errors import InvariantBroken

TILE = 128
"""Default rows of a query tile and keys of a key tile."""


@dataclass(slots=True, frozen=True)
class BlockMask:
    """Lists of key tiles by head and query tile.

    Query tile ``t`` of a sequence is rows ``[t * tile_q, (t + 1) * tile_q)`` of its chunk; tiles of
    packed sequences lie one behind the other. Key tile ``j`` is context positions ``[j * tile_k,
    (j + 1) * tile_k)``.
    """

    counts: Tensor
    """int32 (mask heads, query tiles). The mask heads divide the query heads: neighbours share."""
    indices: Tensor
    """int32 (mask heads, query tiles, widest): the first ``counts`` are kept tiles, ascending."""
    tile_q: int = TILE
    tile_k: int = TILE

    @classmethod
    def of(cls, keep: Tensor, tile_q: int = TILE, tile_k: int = TILE) -> "BlockMask":
        """From bool (mask heads, query tiles, key tiles). Reads nothing back from a device."""
        order = torch.argsort(keep.logical_not().to(torch.uint8), dim=-1, stable=True)
        counts = keep.sum(-1, dtype=torch.int32)
        return cls(counts, order.to(torch.int32), tile_q, tile_k)

    def keep(self, num_keys: int) -> Tensor:
        """bool (mask heads, query tiles, key tiles of ``num_keys`` keys); later tiles are lost."""
        tiles = -(-num_keys // self.tile_k)
        widest = self.indices.shape[-1]
        listed = torch.arange(widest, device=self.counts.device) < self.counts[..., None]
        listed &= self.indices < tiles
        table = torch.zeros(*self.counts.shape, tiles + 1, dtype=torch.bool, device=listed.device)
        places = torch.where(listed, self.indices, tiles).to(torch.int64)
        return table.scatter_(-1, places, True)[..., :tiles]


def packed(masks: Sequence[BlockMask]) -> BlockMask:
    """One mask for sequences packed in the same order. Raises InvariantBroken where tile sizes or
    heads differ."""
    first = masks[0]
    kinds = {(mask.tile_q, mask.tile_k, mask.counts.shape[0]) for mask in masks}
    if len(kinds) != 1:
        raise InvariantBroken(f"masks of different tiles or heads cannot be packed: {kinds}")
    widest = max(mask.indices.shape[-1] for mask in masks)
    parts = [
        torch.nn.functional.pad(mask.indices, (0, widest - mask.indices.shape[-1]))
        for mask in masks
    ]
    counts = torch.cat([mask.counts for mask in masks], dim=1)
    return BlockMask(counts, torch.cat(parts, dim=1), first.tile_q, first.tile_k)
