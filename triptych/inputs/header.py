"""Size and orientation of a picture from its first bytes: PNG, JPEG, WebP and GIF.

Pure arithmetic on bytes with bounded steps: a file of a million tiny chunks costs no more than any
other. No native code sees a stranger's bytes here; decoding is the business of ``decode``.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

MAX_STEPS = 4096
"""Chunks, segments or blocks that are walked over before the file is given up."""
_ORIENTATION_TAG = 0x0112
_SHORT = 3
_EXIF = b"Exif\0\0"


class Header(NamedTuple):
    """What a picture's header says."""

    format: str
    """``PNG``, ``JPEG``, ``WEBP`` or ``GIF``."""
    width: int
    height: int
    """As stored; ``is_turned`` says whether they are shown exchanged."""
    orientation: int
    """EXIF orientation, 1 to 8; 1 is upright."""

    @property
    def is_turned(self) -> bool:
        """Whether the orientation exchanges width and height."""
        return self.orientation >= 5


class UnreadableError(ValueError):
    """The header of a known format is broken."""


def read_header(data: bytes) -> Header | None:
    """The header, or None if the first bytes are of no format served here.

    Raises UnreadableError when they are, and what follows is broken.
    """
    for magic, name, read in _FORMATS:
        if data.startswith(magic) and (name != "WEBP" or data[8:12] == b"WEBP"):
            try:
                width, height, exif = read(data)
            except (struct.error, IndexError) as error:
                raise UnreadableError(name) from error
            return Header(name, width, height, _orientation(exif))
    return None


def _png(data: bytes) -> tuple[int, int, bytes]:
    """PNG specification, section 5. Only an eXIf chunk before the pixels counts."""
    length, kind, width, height = struct.unpack_from(">I4sII", data, 8)
    if (length, kind) != (13, b"IHDR"):
        raise UnreadableError("PNG")
    position = 33
    for _ in range(MAX_STEPS):
        length, kind = struct.unpack_from(">I4s", data, position)
        if kind == b"IDAT":
            return width, height, b""
        if kind == b"eXIf":
            return width, height, data[position + 8 : position + 8 + length]
        position += 12 + length
    raise UnreadableError("PNG")


def _jpeg(data: bytes) -> tuple[int, int, bytes]:
    """ITU-T T.81, annex B: segments up to the first scan."""
    size: tuple[int, int] | None = None
    exif = b""
    position = 2
    for _ in range(MAX_STEPS):
        lead, marker = struct.unpack_from(">BB", data, position)
        if lead != 0xFF:
            raise UnreadableError("JPEG")
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        (length,) = struct.unpack_from(">H", data, position + 2)
        if marker == 0xDA:
            break
        body = position + 4
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            _, height, width = struct.unpack_from(">BHH", data, body)
            size = width, height
        elif marker == 0xE1 and not exif and data.startswith(_EXIF, body):
            exif = data[body : position + 2 + length]
        position += 2 + max(2, length)
    if size is None:
        raise UnreadableError("JPEG")
    return (*size, exif)


def _webp(data: bytes) -> tuple[int, int, bytes]:
    """WebP container specification; RFC 9649."""
    size: tuple[int, int] | None = None
    for kind, body, length in _riff_chunks(data):
        if size is None:
            size = _webp_size(data, kind, body)
            if kind != b"VP8X" or not data[body] & 0x08:
                return (*size, b"")
        elif kind == b"EXIF":
            return (*size, data[body : body + length])
    if size is None:
        raise UnreadableError("WEBP")
    return (*size, b"")


def _webp_size(data: bytes, kind: bytes, body: int) -> tuple[int, int]:
    if kind == b"VP8X":
        low = int.from_bytes(data[body + 4 : body + 7], "little")
        high = int.from_bytes(data[body + 7 : body + 10], "little")
        return low + 1, high + 1
    if kind == b"VP8L" and data[body] == 0x2F:
        (bits,) = struct.unpack_from("<I", data, body + 1)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 " and data[body + 3 : body + 6] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", data, body + 6)
        return width & 0x3FFF, height & 0x3FFF
    raise UnreadableError("WEBP")


def _riff_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(kind, offset of the body, length) of each chunk."""
    position = 12
    for _ in range(MAX_STEPS):
        if position + 8 > len(data):
            return
        kind, length = struct.unpack_from("<4sI", data, position)
        yield kind, position + 8, length
        position += 8 + length + (length & 1)


def _gif(data: bytes) -> tuple[int, int, bytes]:
    """GIF89a: the screen, enlarged by a first frame that sticks out of it."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    position = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    in_extension = False
    for _ in range(MAX_STEPS):
        byte = data[position]
        if in_extension:  # sub-blocks, each behind its length, up to an empty one
            in_extension = byte != 0
            position += 1 + byte
        elif byte == 0x21:
            in_extension = True
            position += 2
        elif byte == 0x2C:
            left, top, inner_width, inner_height = struct.unpack_from("<HHHH", data, position + 1)
            return max(width, left + inner_width), max(height, top + inner_height), b""
        else:
            position += 1
    raise UnreadableError("GIF")


def _orientation(exif: bytes) -> int:
    """Orientation in the first directory of a TIFF structure (TIFF 6.0, section 2); 1 if it says
    nothing sensible."""
    tiff = exif.removeprefix(_EXIF)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "L", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, start)
        for index in range(min(count, MAX_STEPS)):
            entry = struct.unpack_from(order + "HHLH", tiff, start + 2 + 12 * index)
            if entry[:3] == (_ORIENTATION_TAG, _SHORT, 1):
                return int(entry[3]) if 1 <= entry[3] <= 8 else 1
    except struct.error:
        return 1
    return 1


_FORMATS = (
    (b"\x89PNG\r\n\x1a\n", "PNG", _png),
    (b"\xff\xd8\xff", "JPEG", _jpeg),
    (b"RIFF", "WEBP", _webp),
    (b"GIF87a", "GIF", _gif),
    (b"GIF89a", "GIF", _gif),
)
