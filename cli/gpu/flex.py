"""PyTorch's FlexAttention at the same lists of tiles: compiled, so on CUDA only."""

from typing import Any

import torch
from torch import Tensor

from cli.gpu.kit import Setup

_TILE = 128


def measure(setup: Setup, tiles: Tensor, tokens: int) -> float | str:
    """Seconds of attention that keeps ``tiles``, bool (heads or 1, tiles, tiles), each query's own
    tile among them, masked; or why there is no such figure."""
    if not setup.has_flex:
        return "not asked for"
    if setup.device.type != "cuda":
        return "compiled on CUDA only"
    text = setup.sizes.spec.text
    query = setup.normal(1, text.num_heads, tokens, text.head_dim)
    key, value = (setup.normal(1, text.num_kv_heads, tokens, text.head_dim) for _ in range(2))
    try:
        from torch.nn.attention.flex_attention import flex_attention

        compiled: Any = torch.compile(flex_attention, dynamic=False)
        mask = mask_of(tiles)
        return setup.timer(
            lambda: compiled(query, key, value, block_mask=mask, enable_gqa=True)
        ).median
    except Exception as error:  # noqa: BLE001  what a compiler raises is of no closed set
        return f"{type(error).__name__}: {error}".split("\n")[0][:80]


def mask_of(tiles: Tensor) -> Any:
    """The diagonal is masked element by element, all other kept tiles are whole."""
    from torch.nn.attention.flex_attention import BlockMask

    heads, rows, _ = tiles.shape
    own = torch.eye(rows, dtype=torch.bool, device=tiles.device).expand(heads, -1, -1)
    lists: list[tuple[Tensor, Tensor]] = []
    for part in (own, tiles & ~own):
        order = torch.argsort(part.logical_not().to(torch.uint8), stable=True, dim=-1)
        lists.append((part.sum(-1, dtype=torch.int32)[None], order.int()[None]))
    partial, whole = lists
    return BlockMask.from_kv_blocks(*partial, *whole, _TILE, _is_seen)


def _is_seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    del batch, head
    return query >= key
