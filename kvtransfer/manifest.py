"""The words of a transfer: a fixed frame header and strictly typed bodies with size limits.

    taker                          giver
    Hello(instance, nonce)     ->                              once per connection
                               <-  Welcome(instance, nonce)
    Fetch(handle, ...)         ->                              once per transfer
                               <-  Wait ...                    while nothing is there to send
                               <-  Manifest(layout, ...)       the handle is offered
                               <-  Ready(n)                    pieces are there, credits are not
    Credit(n)                  ->                              so many chunks may come, besides
                                                               those that Fetch let come
                               <-  Chunk(...)                  one against each credit
                               <-  Data + payload              behind a chunk, if in the stream
                               <-  Broken(via, detail)         the way does not carry
    Again(via)                 ->                              by another way; Manifest follows
                               <-  Finish(num_blocks, tail)
    Ack                        ->                              every byte has arrived
                               <-  Acked                       only now it counts
                               <-  Abort(code, detail)         in place of anything of the giver

A fetch counts tokens, because the two sides may have blocks of different sizes; what the giver says
counts its own blocks. Knows bytes and limits. Does not know sockets, keys or memory.
"""

import struct
from typing import Annotated

import msgspec
from msgspec import Meta

from kvtransfer.seal import MAC_BYTES
from triptych.core.errors import TransferError
from triptych.core.layout import Layout

MAGIC = b"TPTX"
VERSION = 3
MAX_BODY_BYTES = 131_072
MAX_GREETING_BYTES = 1_024
"""Limit of a body from a peer that has not proved to know the secret."""
MAX_TAIL_BYTES = 65_536
MAX_ATTACH_BYTES = 65_536
MAX_CHUNK_BLOCKS = 512
MAX_READY = 256
"""Chunks or credits that one message speaks of."""
RAW = "raw"
"""The wire format of bytes as they lie in blocks."""

_PREFIX = struct.Struct("<4sBBHIQ")
PREFIX_BYTES = _PREFIX.size
HEADER_BYTES = PREFIX_BYTES + MAC_BYTES

_Name = Annotated[str, Meta(max_length=256)]
_Text = Annotated[str, Meta(max_length=2_048)]
_Nonce = Annotated[bytes, Meta(min_length=32, max_length=32)]
_Index = Annotated[int, Meta(ge=0, le=2**40)]
_Size = Annotated[int, Meta(ge=1, le=2**40)]
_Count = Annotated[int, Meta(ge=0, le=MAX_READY)]
_Tag = Annotated[bytes, Meta(max_length=16)]
_Attach = Annotated[bytes, Meta(max_length=MAX_ATTACH_BYTES)]
_Places = Annotated[tuple[_Index, ...], Meta(min_length=1, max_length=MAX_CHUNK_BLOCKS)]


class _Body(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Bodies are msgpack arrays: fields by position, none unknown."""


class Hello(_Body, frozen=True):
    """The taker names itself and challenges the giver."""

    instance: _Name
    nonce: _Nonce


class Welcome(_Body, frozen=True):
    """The giver names itself, proves that it knows the secret (by the frame's MAC), challenges."""

    instance: _Name
    nonce: _Nonce


class Fetch(_Body, frozen=True):
    """Give the KV or rows of tokens ``[first_token, end_token)`` of what the handle promises; with
    none wanted, only the tail. Blocks that hold other tokens too come whole."""

    handle: _Name
    epoch: _Index
    layout: _Name
    """Fingerprint of the layout that was promised."""
    first_token: _Index
    end_token: _Index
    via: _Name
    """Transport that is to carry the bytes."""
    wire: _Name = RAW
    """Format of the bytes that the taker would like best."""
    message_bytes: _Size = 1
    """What a chunk of several blocks should have at most."""
    credits: _Count = 0
    """As many chunks may come without asking; given back at once if there is nothing to send."""


class Manifest(_Body, frozen=True):
    """The handle is offered, and in which store of the giver its bytes lie."""

    layout: Layout
    """Of the giver's blocks."""
    wire: _Name
    """Format of the bytes."""
    store: _Index
    """Number of the store at this giver."""
    store_bytes: _Index
    """Size of the whole store."""
    attach: _Attach
    """What the taker's side of the transport must know to reach the store; maybe a secret."""


class Chunk(_Body, frozen=True):
    """Layers ``[first_layer, first_layer + num_layers)`` of blocks ``[first_block, first_block +
    num_blocks)`` of the transfer."""

    first_block: _Index
    num_blocks: Annotated[int, Meta(ge=1, le=MAX_CHUNK_BLOCKS)]
    first_layer: _Index
    num_layers: Annotated[int, Meta(ge=1, le=2**16)]
    places: _Places
    """Where they are: a block of the giver's store each."""
    tag: _Tag
    """AES-GMAC of the bytes in order; empty if digests are off."""
    num_ready: _Count = 0
    """Further chunks that could go now."""
    is_free: bool = False
    """Whether it comes without a credit, being small."""


class Ready(_Body, frozen=True):
    """The giver has chunks and no credit for them, or credits and no chunks."""

    num_ready: _Count
    num_returned: _Count
    """Credits that the giver gives back."""


class Credit(_Body, frozen=True):
    """The taker lets ``count`` further chunks come, and has read the first ``num_read``."""

    count: _Count
    num_read: _Index


class Again(_Body, frozen=True):
    """The way does not carry: the taker wants all but the first ``num_read`` chunks by another.
    Credits are void, and what the giver says before its next Manifest is not listened to."""

    via: _Name
    num_read: _Index
    message_bytes: _Size
    """As in Fetch."""


class Broken(_Body, frozen=True):
    """The giver cannot give by the way that was asked for: the taker says Again, or leaves."""

    via: _Name
    detail: _Text


class Data(_Body, frozen=True):
    """The bytes of the chunk before, behind this frame."""


class Wait(_Body, frozen=True):
    """The giver lives but has nothing to send yet. The taker answers the same: it lives too."""


class Finish(_Body, frozen=True):
    """Nothing follows. ``num_blocks`` counts the giver's blocks of the whole transfer, fetched or
    not."""

    num_blocks: _Index
    tail: Annotated[bytes, Meta(max_length=MAX_TAIL_BYTES)]


class Abort(_Body, frozen=True):
    """The transfer is over without result; ``code`` is one of ``core.errors``."""

    code: _Name
    detail: _Text


class Ack(_Body, frozen=True):
    """The taker has every byte and read all of them before it said so."""


class Acked(_Body, frozen=True):
    """The giver had not taken the memory back before the ack came: the bytes are valid."""


Message = (
    Hello | Welcome | Fetch | Manifest | Chunk | Data | Wait | Finish | Abort | Ack | Acked
    | Ready | Credit | Again | Broken
)  # fmt: skip
_TYPES: tuple[type[Message], ...] = (
    Hello, Welcome, Fetch, Manifest, Chunk, Data, Wait, Finish, Abort, Ack, Acked,
    Ready, Credit, Again, Broken,
)  # fmt: skip
"""In the order of their numbers on the wire, from 1: never reorder."""

_DECODERS = {number: msgspec.msgpack.Decoder(cls) for number, cls in enumerate(_TYPES, 1)}
_NUMBERS = {cls: number for number, cls in enumerate(_TYPES, 1)}
_encoder = msgspec.msgpack.Encoder()


class Prefix(msgspec.Struct, frozen=True):
    """A header without its MAC."""

    kind: int
    body_bytes: int
    payload_bytes: int


def encode(message: Message, payload_bytes: int) -> tuple[bytes, bytes]:
    """``(prefix, body)`` of a frame; the MAC stands between them on the wire."""
    body = _encoder.encode(message)
    kind = _NUMBERS[type(message)]
    return _PREFIX.pack(MAGIC, VERSION, kind, 0, len(body), payload_bytes), body


def parse_prefix(data: bytes, max_body_bytes: int) -> Prefix:
    """The first ``PREFIX_BYTES`` of a header. Raises TransferError."""
    magic, version, kind, reserved, body_bytes, payload_bytes = _PREFIX.unpack(data)
    if magic != MAGIC or reserved != 0:
        raise TransferError("frame: not of this protocol")
    if version != VERSION:
        raise TransferError(f"frame: version {version}, not {VERSION}")
    if kind not in _DECODERS:
        raise TransferError(f"frame: unknown kind {kind}")
    if body_bytes > max_body_bytes:
        raise TransferError(f"frame: body of {body_bytes} bytes, limit {max_body_bytes}")
    if payload_bytes and _TYPES[kind - 1] is not Data:
        raise TransferError("frame: payload where none belongs")
    return Prefix(kind, body_bytes, payload_bytes)


def decode(kind: int, body: bytes) -> Message:
    """The message in a body. Raises TransferError."""
    try:
        message: Message = _DECODERS[kind].decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise TransferError(f"frame: wrong body of kind {kind}: {error}") from error
    return message
