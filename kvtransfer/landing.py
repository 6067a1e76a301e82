"""How bytes leave blocks and how they get into others: the two hooks for shapes and formats.

    blocks --Packing--> extents of a store --transport--> memory of ours --Landing--> blocks

Where both sides have the same layout and bytes travel raw, the extents are the giver's blocks and
the memory is the taker's: nothing is copied twice. Everything else (other block sizes, shards or
dtypes; quantised wire formats) is a ``Packing`` or a ``Landing`` of its own behind ``packing`` and
``landing``. A connection's thread calls them; none of them is shared.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from kvtransfer.manifest import RAW, Manifest
from kvtransfer.pieces import Piece, extents
from kvtransfer.transports.transport import Extent, slices
from triptych.core.errors import TransferError
from triptych.core.ids import BlockId
from triptych.core.ports import BlockMemory


class Packing(Protocol):
    """The giver's side, for one store and wire format; lives as long as the connection."""

    wire: str
    """Format that was granted; the taker may have asked for another."""
    memory: BlockMemory
    """The store that the taker reads: that of the blocks itself, or slots for encoded bytes."""

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

    def theirs(self, piece: Piece, places: Sequence[int]) -> list[Extent]:
        """Where the bytes of ``piece`` lie in the announced store. May raise TransferError."""
        ...

    def ours(self, piece: Piece) -> list[memoryview]:
        """Where they are to be read to, as long as ``theirs`` together: own blocks, or a buffer."""
        ...

    def settle(self, piece: Piece) -> None:
        """The bytes of ``piece`` are in ``ours`` and verified: they belong into the own blocks."""
        ...


class RawPacking:
    """Blocks go out of the store that they are in. Implements ``Packing``."""

    wire = RAW

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

    def __init__(self, wanted: Wanted) -> None:
        self._memory = wanted.memory
        self._blocks = wanted.blocks
        self._first = wanted.first_token // wanted.memory.layout.block_size

    def theirs(self, piece: Piece, places: Sequence[int]) -> list[Extent]:
        """See ``Landing``."""
        return extents(self._memory.layout, places, piece)

    def ours(self, piece: Piece) -> list[memoryview]:
        """See ``Landing``."""
        blocks = self._blocks[piece.first_block - self._first : piece.end_block - self._first]
        return slices(self._memory.view, extents(self._memory.layout, blocks, piece))

    def settle(self, piece: Piece) -> None:
        """They are there."""


def packing(memory: BlockMemory, wire: str) -> Packing:
    """How blocks of ``memory`` go to a taker that asks for ``wire``."""
    del wire  # bytes as they lie are what every taker can read
    return RawPacking(memory)


def landing(manifest: Manifest, wanted: Wanted) -> Landing:
    """How what a manifest announces gets into the wanted blocks. Raises TransferError if that
    cannot be done."""
    if manifest.wire != RAW:
        raise TransferError(f"manifest: the wire format {manifest.wire} is not known here")
    if manifest.layout != wanted.memory.layout:
        raise TransferError("the producer's block layout is another one")
    return EqualLanding(wanted)
