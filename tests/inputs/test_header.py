"""Headers: what Pillow says of the same file, in bounded time, whatever the file."""

import io
import random
import struct
import time
import warnings
import zlib

import pytest
from PIL import Image

from tests.inputs.pictures import encoded, noise
from triptych.inputs.header import MAX_STEPS, Header, UnreadableError, read_header

SAVES = [
    ("PNG", "RGB", {}),
    ("PNG", "P", {}),
    ("PNG", "I;16", {"dpi": (72, 72)}),
    ("PNG", "RGBA", {"save_all": True}),
    ("JPEG", "RGB", {}),
    ("JPEG", "L", {"progressive": True, "icc_profile": b"p" * 200_000}),
    ("JPEG", "CMYK", {"comment": b"hello"}),
    ("WEBP", "RGB", {}),
    ("WEBP", "RGB", {"lossless": True}),
    ("WEBP", "RGBA", {"lossless": True}),
    ("WEBP", "RGB", {"icc_profile": b"p" * 100}),
    ("GIF", "RGB", {"comment": b"x" * 1000}),
    ("GIF", "L", {}),
]


def judged(data: bytes) -> Header:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(data)) as image:
            turn = image.getexif().get(0x0112, 1)
            return Header(image.format, *image.size, turn if turn in range(1, 9) else 1)


@pytest.mark.parametrize(("format_name", "mode", "more"), SAVES)
@pytest.mark.parametrize(("width", "height"), [(1, 1), (17, 400), (259, 7), (1000, 1)])
def test_sizes_equal_pillow(format_name, mode, more, width, height):
    data = encoded(noise(width, height, mode), format_name, **more)
    assert read_header(data) == judged(data) == Header(format_name, width, height, 1)


@pytest.mark.parametrize("format_name", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("turn", [0, 1, 6, 8, 9, 65_535])
def test_orientation_equals_pillow(format_name, turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    exif[0x010F] = "a maker in front of it"
    data = encoded(noise(30, 20), format_name, exif=exif)
    header = read_header(data)
    assert header == judged(data)
    assert header.is_turned == (turn in (5, 6, 7, 8))


def test_big_endian_exif():
    entry = struct.pack(">HHLHH", 0x0112, 3, 1, 6, 0)
    exif = b"Exif\0\0MM\0*" + struct.pack(">LH", 8, 1) + entry + bytes(4)
    data = encoded(noise(30, 20), "JPEG", exif=exif)
    assert read_header(data) == judged(data) == Header("JPEG", 30, 20, 6)


def test_a_first_frame_that_sticks_out_of_the_screen():
    gif = bytearray(encoded(Image.new("L", (200, 100)), "GIF"))
    gif[6:10] = struct.pack("<HH", 10, 10)
    assert read_header(bytes(gif)) == judged(bytes(gif)) == Header("GIF", 200, 100, 1)


def test_fill_bytes_are_skipped():
    data = encoded(noise(30, 20), "JPEG")
    padded = data[:2] + b"\xff" * 9 + data[2:]
    assert read_header(padded) == judged(padded)


def floods(total: int):
    """Files that make a reader walk: 16 MB of the smallest pieces of each format."""
    chunk = b"\0\0\0\0prVt" + struct.pack(">I", zlib.crc32(b"prVt"))
    png = encoded(noise(20, 20))
    yield png[:33] + chunk * (total // 12) + png[33:]
    jpeg = encoded(noise(20, 20), "JPEG")
    yield jpeg[:2] + b"\xff" * total + jpeg[2:]
    yield jpeg[:2] + b"\xff\xfe\0\2" * (total // 4) + jpeg[2:]
    yield jpeg[:2] + b"\xff\xfe\0\0" * (total // 4) + jpeg[2:]
    gif = encoded(noise(20, 20), "GIF")
    at = 13 + 3 * 2 ** ((gif[10] & 7) + 1)
    yield gif[:at] + b"\x21\xfe\0" * (total // 3) + gif[at:]
    yield gif[:at] + b"\x21\xfe" + b"\1a" * (total // 2) + b"\0" + gif[at:]
    yield gif[:at] + b"\0" * total + gif[at:]
    webp = bytearray(encoded(noise(20, 20, "RGBA"), "WEBP", exif=b"Exif\0\0II*\0"))
    yield bytes(webp[:30]) + b"abcd\0\0\0\0" * (total // 8) + bytes(webp[30:])


def test_floods_cost_nothing():
    for data in floods(16_000_000):
        before = time.process_time()
        try:
            header = read_header(data)
            assert (header.width, header.height, header.orientation) == (20, 20, 1)
        except UnreadableError:
            assert data[:3] != b"RIF"
        assert time.process_time() - before < 0.1


def test_pieces_up_to_the_bound_are_read():
    for data in floods(12 * (MAX_STEPS // 16)):
        assert read_header(data)[1:3] == (20, 20)


def test_mutations_never_escape():
    """Whatever one byte is changed to: a header, none, or UnreadableError; and never a larger
    orientation than 8."""
    rng = random.Random(5)
    exif = Image.Exif()
    exif[0x0112] = 6
    originals = [
        encoded(noise(33, 21), name, **({} if name == "GIF" else {"exif": exif}))
        for name in ("PNG", "JPEG", "WEBP", "GIF")
    ]
    outcomes = {"read": 0, "none": 0, "broken": 0}
    for _ in range(8000):
        data = bytearray(rng.choice(originals))
        for _ in range(rng.choice((1, 1, 2, 8))):
            data[rng.randrange(min(len(data), 400))] = rng.randrange(256)
        if rng.random() < 0.2:
            del data[rng.randrange(len(data)) :]
        try:
            header = read_header(bytes(data))
        except UnreadableError:
            outcomes["broken"] += 1
            continue
        outcomes["none" if header is None else "read"] += 1
        if header is not None:
            assert 1 <= header.orientation <= 8 and header.width >= 0 and header.height >= 0
    assert min(outcomes.values()) > 100, outcomes


def test_other_first_bytes():
    for data in (b"", b"\x89", b"BM" + bytes(100), b"RIFF\0\0\0\0WAVE" + bytes(50), b"GIF88a"):
        assert read_header(data) is None
