"""Blocks of one store as numbers with reference counts.

Knows which blocks are free and how many owners each other block has. Does not know who the
owners are or what the blocks hold.
"""

from collections.abc import Iterable

from triptych.core.errors import InvariantBroken
from triptych.core.ids import BlockId


class BlockPool:
    """``num_blocks`` blocks, numbered from 0. A block is free exactly when nobody refers to it.

    The block freed last is given out first, so that a reader of a freed block is found out soon.
    """

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 1:
            raise ValueError("num_blocks: a pool needs at least one block")
        self.num_blocks = num_blocks
        self._counts = [0] * num_blocks
        self._free = [BlockId(block) for block in reversed(range(num_blocks))]

    @property
    def num_free(self) -> int:
        """Blocks that ``take`` can give out now."""
        return len(self._free)

    def count(self, block: BlockId) -> int:
        """References to ``block``."""
        return self._counts[block]

    def take(self, count: int) -> list[BlockId]:
        """``count`` free blocks with one reference each.

        Raises InvariantBroken if fewer are free: the caller has counted before.
        """
        if count > len(self._free):
            raise InvariantBroken(f"take: {count} blocks wanted, {len(self._free)} free")
        start = len(self._free) - count
        taken = self._free[start:][::-1]
        del self._free[start:]
        for block in taken:
            self._counts[block] = 1
        return taken

    def share(self, blocks: Iterable[BlockId]) -> None:
        """One more reference to each of ``blocks``, which are in use already."""
        for block in blocks:
            if self._counts[block] < 1:
                raise InvariantBroken(f"share: block {block} is free")
            self._counts[block] += 1

    def drop(self, blocks: Iterable[BlockId]) -> None:
        """One reference less to each of ``blocks``; the last one frees the block."""
        for block in blocks:
            if self._counts[block] < 1:
                raise InvariantBroken(f"drop: block {block} is free already")
            self._counts[block] -= 1
            if self._counts[block] == 0:
                self._free.append(block)

    def check(self) -> None:
        """Raise InvariantBroken unless the free list is exactly the blocks without a reference."""
        unused = {block for block, count in enumerate(self._counts) if count == 0}
        if len(self._free) != len(unused) or set(self._free) != unused:
            raise InvariantBroken("pool: the free list and the reference counts disagree")
