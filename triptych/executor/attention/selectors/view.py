"""What a selector sees of one sequence: a chunk of queries, all keys, where its pictures lie.

Knows tiles of rows and of keys; chooses none.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from triptych.core.errors import InvariantBroken


class VisualSpan(NamedTuple):
    """Tokens ``[start, end)`` of the context are a picture or the frames of a video."""

    start: int
    end: int
    grid: tuple[int, int, int]
    """Merged tokens: frames, rows, columns."""


@dataclass(frozen=True)
class View:
    """A chunk of one sequence. What ``spans`` do not name is text."""

    query: Tensor
    """(rows, heads, head_dim): the last rows of the context."""
    keys: Tensor
    """(context, KV heads, head_dim)."""
    spans: Sequence[VisualSpan]
    scale: float
    tile_q: int
    tile_k: int

    def __post_init__(self) -> None:
        if self.query.shape[0] > self.context or self.query.shape[1] % self.keys.shape[1]:
            raise InvariantBroken("a selector's query and keys do not fit together")
        behind = 0
        for span in self.spans:
            frames, rows, columns = span.grid
            if span.start < behind or span.end - span.start != frames * rows * columns:
                raise InvariantBroken(f"visual spans out of order, or not of their grid: {span}")
            behind = span.end

    @property
    def rows(self) -> int:
        """Queries of the chunk."""
        return self.query.shape[0]

    @property
    def context(self) -> int:
        """Keys: what the last row sees."""
        return self.keys.shape[0]

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.query.shape[1]

    @property
    def group(self) -> int:
        """Query heads that share keys."""
        return self.heads // self.keys.shape[1]

    @property
    def query_tiles(self) -> int:
        """Number of tiles of rows."""
        return -(-self.rows // self.tile_q)

    @property
    def key_tiles(self) -> int:
        """Number of tiles of keys."""
        return -(-self.context // self.tile_k)

    @property
    def device(self) -> torch.device:
        """Of the keys."""
        return self.keys.device

    @property
    def first(self) -> Tensor:
        """int64 (query tiles,): context position of each tile's first row."""
        return self._outline.first

    @property
    def last(self) -> Tensor:
        """int64 (query tiles,): context position of each tile's last row."""
        return self._outline.last

    @property
    def causal(self) -> Tensor:
        """bool (query tiles, key tiles): where any row sees any key."""
        return self._outline.causal

    @property
    def diagonal(self) -> Tensor:
        """bool (query tiles, key tiles): tiles that hold a row's own key."""
        return self._outline.diagonal

    @property
    def is_visual(self) -> Tensor:
        """bool (context,), on the host: where spans say so."""
        return self._outline.is_visual

    @property
    def has_text(self) -> Tensor:
        """bool (query tiles,): tiles with any row of text."""
        return self._outline.has_text

    @cached_property
    def _outline(self) -> "_Outline":
        tiles = self.tile_q, self.tile_k
        return _outline(self.rows, self.context, tuple(self.spans), *tiles, self.device)

    def probes(self, count: int, *, is_visual: bool) -> Tensor:
        """int64: the last ``count`` rows of the chunk; with ``is_visual`` of those of pictures."""
        start = self.context - self.rows
        rows = torch.arange(self.rows)
        if is_visual:
            rows = rows[self.is_visual[start:]]
        return rows[-count:].to(self.device)

    def weights(self, rows: Tensor) -> Tensor:
        """Softmax weights of some rows: float32 (heads, rows, context)."""
        parts = []
        last = (rows + (self.context - self.rows))[:, None]
        hidden = torch.arange(self.context, device=self.device) > last
        for query, keys in self.groups(self.query[rows]):
            scores = query @ keys.transpose(0, 1) * self.scale
            parts.append(scores.masked_fill_(hidden, -torch.inf).softmax(-1))
        return torch.cat(parts)

    def groups(self, query: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """For each KV head, in float32: its queries (group, rows, head_dim), its keys (context,
        head_dim). One by one: scores of all heads at once would be large."""
        by_head = torch.unflatten(query.transpose(0, 1), 0, (-1, self.group))
        for index in range(self.keys.shape[1]):
            yield by_head[index].float(), self.keys[:, index].float()

    def tiles_of(self, rows: Tensor, size: int) -> Tensor:
        """(..., n, head_dim) cut into (..., tiles, size, head_dim), zeros at the end."""
        missing = -rows.shape[-2] % size
        whole = functional.pad(rows, (0, 0, 0, missing))
        return whole.reshape(*rows.shape[:-2], -1, size, rows.shape[-1])


@dataclass(frozen=True, slots=True)
class _Outline:
    """What of a view depends on lengths and spans only."""

    first: Tensor
    last: Tensor
    causal: Tensor
    diagonal: Tensor
    is_visual: Tensor
    has_text: Tensor


@functools.lru_cache(maxsize=64)
def _outline(
    rows: int,
    context: int,
    spans: tuple[VisualSpan, ...],
    tile_q: int,
    tile_k: int,
    device: torch.device,
) -> _Outline:
    """The same for every layer of a step: made, and sent to the device, by the first that asks."""
    first = torch.arange(0, rows, tile_q) + (context - rows)
    last = (first + tile_q - 1).clamp_max(context - 1)
    keys = torch.arange(-(-context // tile_k)) * tile_k
    causal = keys <= last[:, None]
    is_visual = torch.zeros(context, dtype=torch.bool)
    for span in spans:
        is_visual[span.start : span.end] = True
    text = functional.pad(~is_visual[context - rows :], (0, len(first) * tile_q - rows))
    return _Outline(
        first=first.to(device),
        last=last.to(device),
        causal=causal.to(device),
        diagonal=(causal & (keys + tile_k > first[:, None])).to(device),
        is_visual=is_visual,
        has_text=text.view(-1, tile_q).any(1).to(device),
    )
