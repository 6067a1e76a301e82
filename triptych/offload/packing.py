"""How a block lies in a slot: as it is, or smaller.

Packing and unpacking leave Python's lock, so that other threads go on meanwhile.
"""

from typing import Protocol

import numpy as np

from triptych.core.layout import Layout


class Packing(Protocol):
    """Bytes of a block to bytes of a slot and back. Any thread."""

    name: str
    """``cache.at_rest``."""
    packed_bytes: int
    """Bytes that a block takes in its slot."""

    def pack(self, block: memoryview, slot: memoryview) -> None:
        """Fill the first ``packed_bytes`` of ``slot``."""
        ...

    def unpack(self, slot: memoryview, block: memoryview) -> None:
        """The inverse, within the error that the packing states."""
        ...


class Raw:
    """A block as it is."""

    name = "raw"

    def __init__(self, layout: Layout) -> None:
        self.packed_bytes = layout.block_bytes

    def pack(self, block: memoryview, slot: memoryview) -> None:
        """See ``Packing``."""
        _copy(block, slot[: self.packed_bytes])

    def unpack(self, slot: memoryview, block: memoryview) -> None:
        """See ``Packing``."""
        _copy(slot[: self.packed_bytes], block)


def _copy(source: memoryview, target: memoryview) -> None:
    np.copyto(np.frombuffer(target, np.uint8), np.frombuffer(source, np.uint8))
