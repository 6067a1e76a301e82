"""The program of a picture-decoding child: pixels of one picture after another, on one socket.

Runs as a script of its own in a fresh interpreter (see ``decode``) and imports Pillow only. What it
reads comes from strangers: it gives up memory, files and core dumps before the first byte.
"""

import ctypes
import io
import resource
import signal
import socket
import struct
import sys

from PIL import Image

REQUEST = struct.Struct("<8sBIIIIQ")
"""Format name, padded with NUL; orientation, width and height as ``header`` read them; width and
height to scale to; bytes of the picture that follow."""
REPLY = struct.Struct("<BQ")
"""One of the results below, and the bytes of pixels that follow (RGB, row by row)."""
OK, UNREADABLE, TOO_LARGE = 0, 1, 2

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PR_SET_PDEATHSIG = 1


def to_rgb(image: Image.Image, orientation: int) -> Image.Image:
    """Upright RGB of an opened picture: first frame, 16 bits cut to 8, transparency on white."""
    if image.mode.startswith("I"):
        image = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    if "A" in image.getbands() or "transparency" in image.info:
        over = image.convert("RGBA")
        image = Image.new("RGBA", over.size, (255, 255, 255, 255))
        image.alpha_composite(over)
    image = image.convert("RGB")
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def pixels(
    data: bytes, format_name: str, orientation: int, stored: tuple[int, int], size: tuple[int, int]
) -> bytes:
    """RGB bytes of a picture, scaled bicubically to ``size`` (width, height).

    ``stored`` is the size that the header promised and that every limit was checked against; a
    decoder that finds another one is not followed.
    """
    with Image.open(io.BytesIO(data), formats=[format_name]) as image:
        if image.size != stored:
            raise ValueError("stored: the decoder sees another size")
        return to_rgb(image, orientation).resize(size, Image.Resampling.BICUBIC).tobytes()


def main(parent: int, memory_bytes: int, timeout_s: float) -> None:
    """Serve the socket at descriptor 0 until the parent closes it."""
    _confine(parent, memory_bytes)
    Image.preinit()
    with socket.socket(fileno=0) as connection:
        while header := _receive(connection, REQUEST.size):
            name, orientation, *sizes, num_bytes = REQUEST.unpack(header)
            data = _receive(connection, num_bytes)
            signal.setitimer(signal.ITIMER_REAL, timeout_s)
            result, answer = _decode(data, name.rstrip(b"\0").decode(), orientation, sizes)
            signal.setitimer(signal.ITIMER_REAL, 0)
            connection.sendall(REPLY.pack(result, len(answer)))
            connection.sendall(answer)


def _decode(data: bytes, name: str, orientation: int, sizes: list[int]) -> tuple[int, bytes]:
    width, height, new_width, new_height = sizes
    try:
        return OK, pixels(data, name, orientation, (width, height), (new_width, new_height))
    except (MemoryError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        return TOO_LARGE, b""
    except Exception:  # noqa: BLE001  a decoder's errors on hostile bytes are of no closed set
        return UNREADABLE, b""


def _confine(parent: int, memory_bytes: int) -> None:
    """Die with the parent; no more memory than granted, no files written, no core dumps."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    with open("/proc/self/stat", encoding="ascii") as file:
        fields = file.read().rpartition(")")[2].split()
    if int(fields[1]) != parent:
        sys.exit(1)
    limit = int(fields[20]) + memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _receive(connection: socket.socket, size: int) -> bytes:
    """Exactly ``size`` bytes, or ``b""`` at the end of the stream."""
    buffer = bytearray(size)
    view = memoryview(buffer)
    done = 0
    while done < size:
        count = connection.recv_into(view[done:])
        if count == 0:
            return b""
        done += count
    return bytes(buffer)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
