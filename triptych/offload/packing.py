"""How a block lies in a slot: as it is, or smaller.

Packing and unpacking leave Python's lock, so that other threads go on meanwhile.
"""

from typing import Protocol

import numpy as np

from triptych.codec.formats import FORMATS
from triptych.core.layout import Layout

RAW = "raw"


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

    name = RAW

    def __init__(self, layout: Layout) -> None:
        self.packed_bytes = layout.block_bytes

    def pack(self, block: memoryview, slot: memoryview) -> None:
        """See ``Packing``."""
        _copy(block, slot[: self.packed_bytes])

    def unpack(self, slot: memoryview, block: memoryview) -> None:
        """See ``Packing``."""
        _copy(slot[: self.packed_bytes], block)


class Encoded:
    """A block of numbers whose rows are quantised, ``int8`` or ``fp8``; ``codec.rows`` states the
    error. Raises ConfigError that names ``cache.at_rest`` for blocks of bytes."""

    def __init__(self, name: str, layout: Layout) -> None:
        self.name = name
        self._layout = layout
        self._format = FORMATS[name]
        self._format.check(layout, "cache.at_rest")
        self.packed_bytes = self._format.encoded_bytes(layout)

    def pack(self, block: memoryview, slot: memoryview) -> None:
        """See ``Packing``."""
        self._format.encode(self._layout, block, (0,), slot[: self.packed_bytes])

    def unpack(self, slot: memoryview, block: memoryview) -> None:
        """See ``Packing``."""
        self._format.decode(self._layout, slot[: self.packed_bytes], block, (0,))


def packing(name: str, layout: Layout) -> Packing:
    """How ``cache.at_rest`` says. Raises ConfigError."""
    return Raw(layout) if name == RAW else Encoded(name, layout)


def _copy(source: memoryview, target: memoryview) -> None:
    np.copyto(np.frombuffer(target, np.uint8), np.frombuffer(source, np.uint8))
