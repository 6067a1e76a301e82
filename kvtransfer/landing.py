"""How bytes leave blocks and how they get into others: the two hooks for shapes and formats.

    blocks --Packing--> extents of a store --transport--> memory of ours --Landing--> blocks

Where both sides have the same layout and bytes travel raw, the extents are the giver's blocks and
the memory is the taker's: nothing is copied twice. Everything else (other block sizes, shards or
dtypes; quantised wire formats) is in ``converted``. A connection's thread calls them; none of them
is shared.
"""

import sys
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from kvtransfer.manifest import RAW, Manifest
from kvtransfer.pieces import Piece, check_bounds, extents
from kvtransfer.transports.transport import Extent, Source, slices
from triptych.core.ids import BlockId
from triptych.core.ports import BlockMemory


class Packing(Protocol):
    """The giver's side, for one store and wire format; lives as long as the connection."""

    wire: str
    """Format that was granted; the taker may have asked for another."""
    memory: BlockMemory
    """The store that the taker reads: that of the blocks itself, or slots for encoded bytes."""
    num_slots: int
    """Pieces that may be packed and not read at once."""
    piece_bytes: int
    """What a piece of several blocks may have at most."""

    def pack(self, piece: Piece, blocks: Sequence[BlockId]) -> tuple[Sequence[int], list[Extent]]:
        """Places in ``memory`` of each block of ``piece``, which are ``blocks`` of the offered
        store, and the extents of the bytes in order. They stay as they are until ``read``."""
        ...

    def read(self) -> None:
        """The taker has read the oldest piece that was packed and not read."""
        ...

    def close(self) -> None:
        """Let go of what was made."""
        ...


class Wanted(NamedTuple):
    """What a fetch wants, and where it goes."""

    memory: BlockMemory
    blocks: tuple[BlockId, ...]
    """Own blocks for tokens ``[first_token, end_token)``, of which the first begins a block."""
    first_token: int
    end_token: int


class Landing(Protocol):
    """The taker's side of one fetch. Never writes to tokens outside those wanted: the blocks of a
    giver may hold others, and the own blocks before ``first_token`` are shared."""

    def bring(self, piece: Piece, places: Sequence[int], source: Source) -> list[memoryview]:
        """The bytes of ``piece``, in the order in which the giver says them: read into own blocks,
        or into a buffer, or where they lie. Raises TransferError or InstanceLost."""
        ...

    def settle(self) -> None:
        """The bytes brought last are the right ones: they belong into the own blocks."""
        ...


class RawPacking:
    """Blocks go out of the store that they are in. Implements ``Packing``."""

    wire = RAW
    num_slots = piece_bytes = sys.maxsize

    def __init__(self, memory: BlockMemory) -> None:
        self.memory = memory

    def pack(self, piece: Piece, blocks: Sequence[BlockId]) -> tuple[Sequence[int], list[Extent]]:
        """See ``Packing``."""
        return blocks, extents(self.memory.layout, blocks, piece)

    def read(self) -> None:
        """The offer's lease keeps the blocks as they are."""

    def close(self) -> None:
        """Nothing was made."""


class EqualLanding:
    """Blocks of the same layout, read straight into place. Implements ``Landing``."""

    def __init__(self, manifest: Manifest, wanted: Wanted) -> None:
        self._store_bytes = manifest.store_bytes
        self._memory = wanted.memory
        self._blocks = wanted.blocks
        self._first = wanted.first_token // wanted.memory.layout.block_size

    def bring(self, piece: Piece, places: Sequence[int], source: Source) -> list[memoryview]:
        """See ``Landing``."""
        theirs = extents(self._memory.layout, places, piece)
        check_bounds(theirs, self._store_bytes)
        blocks = self._blocks[piece.first_block - self._first : piece.end_block - self._first]
        ours = slices(self._memory.view, extents(self._memory.layout, blocks, piece))
        source.read(theirs, ours)
        return ours

    def settle(self) -> None:
        """They are there."""
