"""Which numbers of one layout are which of another: other shards, block sizes and dtypes.

Half-open intervals of one sequence's tokens and of all heads of a layer; every part between two
neighbouring cuts lies in one block (or shard) of each side and is one strided copy::

    tokens   0       bs            2 bs     end        heads   0     h      2 h     3 h
    giver    |- b0 --|----- b1 ----|-- b2 --:          giver   |- s0 -|- s1 -|- s2 -|
    taker    |--- c0 ---|--- c1 ---|- c2 ---:          taker   |--- t0 ----|--- t1 -|
    cuts     |       |  |          |        |          cuts    |      |    | |      |
                     ^- first: what the taker has already (whole blocks of its own) is not touched

Knows arrays with the axes of ``triptych.codec.grid`` and places in them; no transport, no lease.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from triptych.codec.dtypes import Array
from triptych.codec.grid import grid_of
from triptych.codec.pieces import Pieces
from triptych.core.errors import TransferError
from triptych.core.layout import Layout

ALL = slice(None)


class Part(NamedTuple):
    """An interval between two cuts: in which unit of either side it lies, and where in it."""

    source: int
    source_at: slice
    target: int
    target_at: slice


class Repartition:
    """The map from blocks of ``source`` to blocks of ``target``.

    Raises TransferError if the two hold other numbers: another model, other layers, heads or
    widths, bytes on one side and floating point on the other.
    """

    def __init__(self, source: Layout, target: Layout) -> None:
        if not source.can_become(target):
            raise TransferError("the producer's blocks hold other numbers than the consumer's")
        theirs, ours = grid_of(source), grid_of(target)
        self._sizes = source.block_size, target.block_size
        self._dtype = target.dtype
        self._heads = list(parts(0, theirs.shards * theirs.heads, theirs.heads, ours.heads))

    def land(
        self,
        pieces: Pieces,
        places: Sequence[int],
        first_block: int,
        target: Array,
        blocks: Sequence[int],
        tokens: range,
    ) -> None:
        """Copy what ``pieces`` hold of ``tokens`` to ``target``; nothing else is written.

        Args:
            pieces: some layers of blocks of the source layout.
            places: where in them block ``first_block`` of the sequence is, and those behind it.
            first_block: counted from the sequence's beginning, in blocks of the source.
            target: the taker's store as an array, cut to the same layers.
            blocks: places in it of the sequence's blocks, from the one of ``tokens.start`` on.
            tokens: of the sequence, those that the taker wants; step 1.
        """
        theirs, ours = self._sizes
        begin = max(tokens.start, first_block * theirs)
        end = min(tokens.stop, (first_block + len(places)) * theirs)
        skipped = tokens.start // ours
        for part in parts(begin, end, theirs, ours):
            for heads in self._heads:
                at = (places[part.source - first_block], heads.source, ALL, ALL)
                to = (blocks[part.target - skipped], heads.target, ALL, ALL)
                written = target[*to, part.target_at, heads.target_at]
                pieces.read((*at, part.source_at, heads.source_at), written, self._dtype)


def parts(begin: int, end: int, source_size: int, target_size: int) -> Iterator[Part]:
    """``[begin, end)`` cut where a unit of either side ends."""
    at = begin
    while at < end:
        source, source_at = divmod(at, source_size)
        target, target_at = divmod(at, target_size)
        length = min(end - at, source_size - source_at, target_size - target_at)
        yield Part(
            source,
            slice(source_at, source_at + length),
            target,
            slice(target_at, target_at + length),
        )
        at += length
