"""Pieces of a transfer: which layers of which blocks, where their bytes lie, what has arrived.

    a block of 2 shards and 3 layers       [ s0l0 s0l1 s0l2 | s1l0 s1l1 s1l2 ]
    its piece of layers [1, 3)                    '-------'        '-------'     one run a shard
    a piece of all layers                  '-------------------------------'     the whole block

Positions count the giver's blocks from the beginning of the transfer. Knows layouts; no sockets.
"""

from collections.abc import Sequence
from typing import NamedTuple

from kvtransfer.transports.transport import Extent
from triptych.core.errors import TransferError
from triptych.core.layout import Layout


class Piece(NamedTuple):
    """Layers ``[first_layer, first_layer + num_layers)`` of blocks ``[first_block, first_block +
    num_blocks)`` of a transfer."""

    first_block: int
    num_blocks: int
    first_layer: int
    num_layers: int

    @property
    def end_block(self) -> int:
        """The first block behind."""
        return self.first_block + self.num_blocks

    @property
    def end_layer(self) -> int:
        """The first layer behind."""
        return self.first_layer + self.num_layers

    def joined(self, other: "Piece") -> "Piece | None":
        """This piece and ``other``, which follows it, as one; None if they are not one."""
        if self[:2] == other[:2] and self.end_layer == other.first_layer:
            return self._replace(num_layers=self.num_layers + other.num_layers)
        if self[2:] == other[2:] and self.end_block == other.first_block:
            return self._replace(num_blocks=self.num_blocks + other.num_blocks)
        return None


def piece_bytes(layout: Layout, piece: Piece) -> int:
    """Bytes of a piece as they lie in blocks of ``layout``."""
    return piece.num_blocks * layout.block_bytes // layout.num_layers * piece.num_layers


def extents(layout: Layout, places: Sequence[int], piece: Piece) -> list[Extent]:
    """Where the bytes of ``piece`` lie in a store whose blocks ``places`` are those of the piece:
    block by block, shard by shard; whole neighbours in memory come as one."""
    size = layout.block_bytes
    if piece.num_layers == layout.num_layers:
        return [Extent(first * size, count * size) for first, count in runs(places)]
    run = size // layout.num_shards
    layer = run // layout.num_layers
    begin, length = piece.first_layer * layer, piece.num_layers * layer
    starts = [shard * run + begin for shard in range(layout.num_shards)]
    return [Extent(place * size + start, length) for place in places for start in starts]


def check_bounds(spans: Sequence[Extent], store_bytes: int) -> None:
    """Raise TransferError unless all of ``spans`` lie within a store."""
    if any(offset < 0 or offset + length > store_bytes for offset, length in spans):
        raise TransferError("chunk: bytes that the store does not have")


def runs(blocks: Sequence[int]) -> list[tuple[int, int]]:
    """``(first, count)`` of every ascending run: ``(4, 5, 6, 1, 2) -> [(4, 3), (1, 2)]``."""
    found: list[tuple[int, int]] = []
    first = count = 0
    for block in blocks:
        if count and block == first + count:
            count += 1
            continue
        if count:
            found.append((first, count))
        first, count = block, 1
    if count:
        found.append((first, count))
    return found


class Progress:
    """Which layers of the wanted blocks ``[first, end)`` are there: each once, in order."""

    def __init__(self, first: int, end: int, num_layers: int) -> None:
        self._first = first
        self._layers = [0] * (end - first)
        self._num_layers = num_layers
        self.num_complete = 0
        """Wanted blocks, from the first on, of which every layer is there."""

    @property
    def is_complete(self) -> bool:
        """Whether nothing is missing."""
        return self.num_complete == len(self._layers)

    def check(self, piece: Piece) -> None:
        """Raise TransferError unless ``piece`` is wanted and comes in its turn."""
        first, end = piece.first_block - self._first, piece.end_block - self._first
        is_inside = 0 <= first < end <= len(self._layers) and piece.end_layer <= self._num_layers
        if not is_inside or set(self._layers[first:end]) != {piece.first_layer}:
            raise TransferError("a chunk that was not asked for")

    def add(self, piece: Piece) -> None:
        """``piece``, which was checked, is there."""
        first, end = piece.first_block - self._first, piece.end_block - self._first
        self._layers[first:end] = [piece.end_layer] * piece.num_blocks
        while not self.is_complete and self._layers[self.num_complete] == self._num_layers:
            self.num_complete += 1
