"""What a leader and its followers say to each other, and how: msgpack frames over a socket pair.

A socket tells at once that its other end is gone. Knows no process and no tensor.
"""

import socket
import struct

import msgspec

from triptych.core.config_sparse import SparseConfig
from triptych.core.layout import Layout
from triptych.core.plan import LanguagePlan, PlacedItem, Segment

_LENGTH = struct.Struct("<I")


class Orders(msgspec.Struct, frozen=True):
    """The leader's first word: what a follower is to be."""

    path: str
    """The model's folder."""
    dtype: str
    kernels: str
    """``model.kernels``, decided."""
    rank: int
    threads: int
    """Arithmetic threads."""
    layout: Layout
    num_blocks: int
    store: int
    """Descriptor of the KV store's memfd."""
    board: int
    peers: tuple[int, ...]
    """Descriptors of what ``ProcessRanks`` is made of."""
    timeout_s: float
    sparse: SparseConfig = SparseConfig()


class Ready(msgspec.Struct, frozen=True):
    """The follower's only word: its share of the weights is loaded, or why not."""

    num_bytes: int = 0
    error: str = ""
    """Text of a ConfigError."""


def send(connection: socket.socket, data: bytes) -> None:
    """One frame. Raises OSError."""
    connection.sendall(_LENGTH.pack(len(data)) + data)


def receive(connection: socket.socket) -> bytes:
    """One frame. Raises EOFError at the end of the stream, OSError."""
    (size,) = _LENGTH.unpack(_exactly(connection, _LENGTH.size))
    return _exactly(connection, size)


def bare(plan: LanguagePlan) -> LanguagePlan:
    """What a follower needs of a plan: it draws nothing, and gets its rows from the leader."""
    return LanguagePlan(tuple(map(_bare, plan.segments)))


def _bare(segment: Segment) -> Segment:
    items = tuple(PlacedItem(placed.item) for placed in segment.items)
    return Segment(segment.job, segment.start, segment.tokens, segment.blocks, items)


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        count = connection.recv_into(view)
        if not count:
            raise EOFError("the other end is gone")
        view = view[count:]
    return bytes(data)
