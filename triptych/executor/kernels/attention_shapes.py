"""What attention over paged KV may be called with; kernels and twins refuse the same.

Knows shapes and types, looks at no value: a check never waits for the device.
"""

import torch
from torch import Tensor

from triptych.executor.kernels.arguments import FLOATS, require

QUANTISED = (torch.int8, torch.float8_e4m3fn)
BLOCK_SIZES = (8, 16, 32, 64, 128)


def check_index(index: Tensor, shape: tuple[int, ...], what: str) -> None:
    """An index of a plan: int32, contiguous in its last dimension. Raises InvariantBroken."""
    require(index.dtype == torch.int32, f"{what} must be int32, not {index.dtype}")
    require(tuple(index.shape) == shape, f"{what} must be {shape}, not {tuple(index.shape)}")
    require(index.stride(-1) == 1, f"{what} must be contiguous")


def check_query(query: Tensor, heads: int, head_dim: int, out: Tensor | None) -> None:
    """``query`` (rows, a multiple of ``heads``, head_dim) and ``out`` of the same shape and type.
    Raises InvariantBroken."""
    require(query.dim() == 3, f"query must have three dimensions, not {query.dim()}")
    require(query.dtype in FLOATS, f"query cannot be {query.dtype}")
    require(query.shape[1] % heads == 0, f"{query.shape[1]} heads share {heads} KV heads")
    require(query.shape[2] == head_dim, f"head_dim {query.shape[2]} meets keys of {head_dim}")
    require(query.stride(2) == 1, "query must be contiguous in its last dimension")
    if out is not None:
        require(out.shape == query.shape, f"out must be {tuple(query.shape)}")
        require(out.dtype == query.dtype, f"out must be {query.dtype}")
        require(out.stride(2) == 1, "out must be contiguous in its last dimension")


def check_spans(
    query: Tensor, key: Tensor, value: Tensor, lows: Tensor, out: Tensor | None, scale: float
) -> None:
    """``query``, ``key``, ``value`` (tokens, heads, head_dim) of one type, ``lows`` by token.
    Raises InvariantBroken."""
    check_query(query, query.shape[1], query.shape[-1], out)
    require(scale > 0, f"scores cannot be scaled by {scale}")
    require(query.shape[2] >= 16, f"no kernel for heads of {query.shape[2]}")
    for part in (key, value):
        require(part.shape == query.shape, f"keys and values must be {tuple(query.shape)}")
        require(part.dtype == query.dtype, f"{query.dtype} meets {part.dtype}")
        require(part.stride(2) == 1, "keys and values must be contiguous by head")
    check_index(lows, (query.shape[0],), "lows")


def check_paged(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    table: Tensor,
    key_scales: Tensor | None,
    value_scales: Tensor | None,
    out: Tensor | None,
    scale: float,
) -> None:
    """``keys``, ``values`` (blocks, block_size, KV heads, head_dim) of one layer, either of the
    query's type or quantised and with scales (blocks, block_size, KV heads); ``table`` int32
    (sequences, blocks of the longest). Raises InvariantBroken."""
    require(scale > 0, f"scores cannot be scaled by {scale}")
    require(keys.dim() == 4, f"keys must have four dimensions, not {keys.dim()}")
    require(values.shape == keys.shape, "keys and values differ in shape")
    require(values.dtype == keys.dtype, "keys and values differ in type")
    require(keys.shape[1] in BLOCK_SIZES, f"no kernel for blocks of {keys.shape[1]} tokens")
    require(keys.stride(3) == 1 and values.stride(3) == 1, "KV must be contiguous by head")
    check_query(query, keys.shape[2], keys.shape[3], out)
    is_quantised = keys.dtype in QUANTISED
    require(is_quantised or keys.dtype == query.dtype, f"{query.dtype} meets {keys.dtype}")
    for scales in (key_scales, value_scales):
        require((scales is not None) == is_quantised, "scales go with quantised KV, and only so")
        if scales is not None:
            require(scales.dtype == torch.float32, f"scales must be float32, not {scales.dtype}")
            require(scales.shape == keys.shape[:3], f"scales must be {tuple(keys.shape[:3])}")
            require(scales.stride(2) == 1, "scales must be contiguous by token")
    if key_scales is not None and value_scales is not None:
        is_alike = key_scales.stride() == value_scales.stride()
        require(is_alike, "scales of keys and values lie differently")
    require(table.dim() == 2, f"table must have two dimensions, not {table.dim()}")
    check_index(table, (table.shape[0], table.shape[1]), "table")
