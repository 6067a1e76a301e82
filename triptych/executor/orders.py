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
    deterministic: bool = False
    device: str = "cpu"
    backend: str = ""
    """Ranks with memory of their own: what joins them, a name of torch.distributed; ..."""
    meeting: str = ""
    """... where they meet (``device_ranks.Meeting``); ..."""
    start_s: float = 0.0
    """... how long they wait for each other; ..."""
    copies: int = -1
    """... and the descriptor over which the leader asks for copies."""


class Copy(msgspec.Struct, frozen=True):
    """Bring a rank's runs of ``blocks`` to the device, whole, or ``layers`` of them, first and end,
    to the memory that all have mapped. Answered by ``DONE``."""

    is_up: bool
    blocks: tuple[int, ...]
    layers: tuple[int, int] = (0, 0)


DONE = b"."


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
