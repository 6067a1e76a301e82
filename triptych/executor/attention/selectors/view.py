"""What a selector sees of one sequence: a chunk of queries, all keys, where its pictures lie.

Knows tiles of rows and of keys; chooses none.
"""

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

    @cached_property
    def first(self) -> Tensor:
        """int64 (query tiles,): context position of each tile's first row."""
        starts = torch.arange(0, self.rows, self.tile_q, device=self.device)
        return starts + (self.context - self.rows)

    @cached_property
    def last(self) -> Tensor:
        """int64 (query tiles,): context position of each tile's last row."""
        return (self.first + self.tile_q - 1).clamp_max(self.context - 1)

    @cached_property
    def causal(self) -> Tensor:
        """bool (query tiles, key tiles): where any row sees any key."""
        starts = torch.arange(self.key_tiles, device=self.device) * self.tile_k
        return starts <= self.last[:, None]

    @cached_property
    def diagonal(self) -> Tensor:
        """bool (query tiles, key tiles): tiles that hold a row's own key."""
        starts = torch.arange(self.key_tiles, device=self.device) * self.tile_k
        return self.causal & (starts + self.tile_k > self.first[:, None])

    @cached_property
    def is_visual(self) -> Tensor:
        """bool (context,), on the host: where spans say so."""
        table = torch.zeros(self.context, dtype=torch.bool)
        for span in self.spans:
            table[span.start : span.end] = True
        return table

    @cached_property
    def has_text(self) -> Tensor:
        """bool (query tiles,): tiles with any row of text."""
        text = ~self.is_visual[self.context - self.rows :]
        spread = functional.pad(text, (0, self.query_tiles * self.tile_q - self.rows))
        return spread.view(-1, self.tile_q).any(1).to(self.device)

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
