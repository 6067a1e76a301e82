"""Keys and values in a store, as numbers or as 8-bit codes: written a row a token, read in pages.

The plain way; kernels write and read codes by themselves. Knows a store's bytes, and that of codes
a page holds all codes first and then all scales: both are aligned whatever a head's size.
"""

from typing import Protocol

import torch
from torch import Tensor

from triptych.core.layout import SCALE_BYTES
from triptych.executor.kernels.reference.quantise import encode
from triptych.executor.ranks import Share

KINDS = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}


class Pages(Protocol):
    """One rank's keys and values. A page is a block's keys, or values, of one layer; rows of tokens
    are counted through all pages."""

    heads: int
    size: int
    """Numbers of a head."""

    def write(self, rows: Tensor, x: Tensor) -> None:
        """``x`` (tokens, heads, size) to ``rows`` (int64)."""
        ...

    def read(self, pages: Tensor, dtype: torch.dtype) -> Tensor:
        """Of ``pages`` (int64): (pages, tokens of a page, heads, size)."""
        ...

    def seen(self, x: Tensor) -> Tensor:
        """``x`` as whoever reads it will find it."""
        ...


def pages_of(store: Tensor, share: Share, dtype: str) -> Pages:
    """Of a store (blocks * ranks, layers, 2, block_size, heads, width) of ``Layout.dtype``; the
    first page is the rank's first."""
    num_layers, _, block_size, heads, width = store.shape[1:]
    pages = store.view(-1, block_size, heads, width)[share.rank * num_layers * 2 :]
    return Codes(pages, KINDS[dtype]) if dtype in KINDS else Numbers(pages)


class Numbers:
    """Implements ``Pages``."""

    def __init__(self, pages: Tensor) -> None:
        self.heads, self.size = pages.shape[2:]
        self._pages = pages.flatten(1)
        self._rows = pages.flatten(0, 1).flatten(1)
        self._shape = pages.shape[1:]

    def write(self, rows: Tensor, x: Tensor) -> None:
        """See ``Pages``."""
        self._rows.index_copy_(0, rows, x.reshape(len(x), -1))

    def read(self, pages: Tensor, dtype: torch.dtype) -> Tensor:  # noqa: ARG002
        """See ``Pages``: of the store's type."""
        return self._pages.index_select(0, pages).view(-1, *self._shape)

    def seen(self, x: Tensor) -> Tensor:
        """See ``Pages``."""
        return x


class Codes:
    """Implements ``Pages``. Codes and scales are those of ``kernels.quantise``."""

    def __init__(self, pages: Tensor, kind: torch.dtype) -> None:
        self.heads, self.size = pages.shape[2], pages.shape[3] - SCALE_BYTES
        self._kind = kind
        self._pages = pages.flatten(1)
        self._block_size = pages.shape[1]
        self._codes, self._scales = planes(pages, kind)

    def write(self, rows: Tensor, x: Tensor) -> None:
        """See ``Pages``."""
        codes, scales = encode(x.float().contiguous(), self._kind)
        page, token = rows // self._block_size, rows % self._block_size
        # As bytes: float8 has few operations of its own.
        self._codes.view(torch.uint8).index_put_((page, token), codes.view(torch.uint8))
        self._scales.index_put_((page, token), scales)

    def read(self, pages: Tensor, dtype: torch.dtype) -> Tensor:
        """See ``Pages``."""
        shape = -1, self._block_size, self.heads, self.size + SCALE_BYTES
        codes, scales = planes(self._pages.index_select(0, pages).view(shape), self._kind)
        return (codes.float() * scales[..., None]).to(dtype)

    def seen(self, x: Tensor) -> Tensor:
        """See ``Pages``."""
        codes, scales = encode(x.float().contiguous(), self._kind)
        return (codes.float() * scales[..., None]).to(x.dtype)


def planes(runs: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """Of bytes (..., block_size, heads, head_dim + SCALE_BYTES) the same memory as codes (...,
    block_size, heads, head_dim) of ``kind`` and float32 scales (..., block_size, heads)."""
    *outer, block_size, heads, width = runs.shape
    flat, cut = runs.flatten(-3), block_size * heads * (width - SCALE_BYTES)
    codes = flat[..., :cut].view(kind).view(*outer, block_size, heads, width - SCALE_BYTES)
    return codes, flat[..., cut:].view(torch.float32).view(*outer, block_size, heads)
