"""The frame parser: what is encoded comes back, and anything else is one typed error."""

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kvtransfer import manifest
from kvtransfer.manifest import (
    HEADER_BYTES,
    MAX_ATTACH_BYTES,
    MAX_BODY_BYTES,
    MAX_CHUNK_BLOCKS,
    MAX_TAIL_BYTES,
    PREFIX_BYTES,
    Abort,
    Ack,
    Acked,
    Again,
    Chunk,
    Credit,
    Data,
    Fetch,
    Finish,
    Hello,
    Manifest,
    Ready,
    Wait,
    Welcome,
)
from tests.kvtransfer.stores import layout
from triptych.core.errors import TransferError

MESSAGES = [
    Hello("taker@0", bytes(32)),
    Welcome("giver@0", bytes(range(32))),
    Fetch("handle", 3, "layout", 7, 8, "tcp"),
    Manifest(layout(), "raw", 0, 2048, b"secret"),
    Chunk(5, 2, 3, 1, (17, 3), bytes(16)),
    Data(),
    Wait(),
    Finish(9, b"tail"),
    Abort("data_loss", "why"),
    Ack(),
    Acked(),
    Ready(3, 0),
    Credit(2, 9),
    Again("tcp", 4, 1 << 20),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_round_trip(message):
    payload = 7 if isinstance(message, Data) else 0
    prefix, body = manifest.encode(message, payload)
    assert len(prefix) == PREFIX_BYTES < HEADER_BYTES
    parsed = manifest.parse_prefix(prefix, MAX_BODY_BYTES)
    assert (parsed.body_bytes, parsed.payload_bytes) == (len(body), payload)
    assert manifest.decode(parsed.kind, body) == message


def test_the_largest_messages_fit_into_the_limit():
    largest = [
        Chunk(2**40, MAX_CHUNK_BLOCKS, 2**40, 2**16, (2**40,) * MAX_CHUNK_BLOCKS, bytes(16)),
        Manifest(layout(), "raw", 2**40, 2**40, bytes(MAX_ATTACH_BYTES)),
        Finish(2**40, bytes(MAX_TAIL_BYTES)),
        Abort("c" * 256, "\N{GRINNING FACE}" * 2048),
    ]
    for message in largest:
        prefix, body = manifest.encode(message, 0)
        assert manifest.decode(manifest.parse_prefix(prefix, MAX_BODY_BYTES).kind, body) == message


@pytest.mark.parametrize(
    "wrong",
    [
        ["taker", bytes(31)],
        ["taker", bytes(33)],
        ["t" * 257, bytes(32)],
        [b"\xff", bytes(32)],
        [1, bytes(32)],
        ["taker"],
        ["taker", bytes(32), 0],
        {"instance": "taker", "nonce": bytes(32)},
        None,
    ],
)
def test_a_body_that_is_nearly_right(wrong):
    kind = manifest._NUMBERS[Hello]
    with pytest.raises(TransferError):
        manifest.decode(kind, msgspec.msgpack.encode(wrong))


def test_counts_are_bounded():
    fetch, chunk = manifest._NUMBERS[Fetch], manifest._NUMBERS[Chunk]
    for kind, body in (
        (fetch, ["h", -1, "l", 0, 0, "tcp"]),
        (fetch, ["h", 0, "l", 0, 2**41, "tcp"]),
        (fetch, ["h", 0, "l", 1.5, 0, "tcp"]),
        (chunk, [0, 0, 0, 1, [0], b""]),
        (chunk, [0, 513, 0, 1, [0], b""]),
        (chunk, [0, 1, 0, 0, [0], b""]),
        (chunk, [0, 1, 0, 2**16 + 1, [0], b""]),
        (chunk, [0, 1, 0, 1, [], b""]),
        (chunk, [0, 1, 0, 1, [0] * 513, b""]),
        (chunk, [0, 1, 0, 1, [-1], b""]),
        (chunk, [0, 1, 0, 1, [0], bytes(17)]),
    ):
        with pytest.raises(TransferError):
            manifest.decode(kind, msgspec.msgpack.encode(body))


@settings(max_examples=300, deadline=None)
@given(st.binary(min_size=PREFIX_BYTES, max_size=PREFIX_BYTES))
def test_any_prefix(data):
    try:
        manifest.parse_prefix(data, MAX_BODY_BYTES)
    except TransferError:
        return
    assert data.startswith(manifest.MAGIC)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(MESSAGES) - 1), st.integers(0, 19), st.integers(0, 7))
def test_a_prefix_with_one_wrong_bit(which, byte, bit):
    prefix, _ = manifest.encode(MESSAGES[which], 0)
    damaged = bytearray(prefix)
    damaged[byte] ^= 1 << bit
    try:
        parsed = manifest.parse_prefix(bytes(damaged), MAX_BODY_BYTES)
    except TransferError:
        return
    assert parsed != manifest.parse_prefix(prefix, MAX_BODY_BYTES), "the MAC covers the rest"


@settings(max_examples=500, deadline=None)
@given(st.integers(1, len(MESSAGES)), st.binary(max_size=200))
@example(1, b"\x92" * 5000)
@example(5, b"\xdd\xff\xff\xff\xff")
@example(2, b"\x92\xdb\xff\xff\xff\xff")
@example(9, b"\x92\xa1\xff\xa1a")
def test_any_body(kind, body):
    try:
        message = manifest.decode(kind, body)
    except TransferError:
        return
    assert manifest.decode(*reversed_encode(message)) == message


def reversed_encode(message):
    prefix, body = manifest.encode(message, 0)
    return manifest.parse_prefix(prefix, MAX_BODY_BYTES).kind, body
