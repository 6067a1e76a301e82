"""What a picture's header says: format, size, orientation; limits, and grid arithmetic.

Reads headers only, never a pixel. Formats are told by their first bytes, not by what the client
says. Does not know how pixels are decoded (``decode``).
"""

import io
import math

from PIL import Image

from triptych.core.config import LimitsConfig
from triptych.core.errors import RequestError
from triptych.core.request import Picture
from triptych.inputs.decode_child import is_turned
from triptych.inputs.model_card import ImageGeometry

_MAX_RESIZE_ASPECT = 200
"""Qwen2-VL's processor refuses more."""
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, IndexError, OverflowError)
"""What Pillow raises on a broken header (``struct.error`` is a ValueError here: see ``_open``)."""


def probe(data: bytes, limits: LimitsConfig, field: str = "picture") -> Picture:
    """The picture with its size as shown (EXIF rotation applied), or RequestError that names
    ``field`` and the limit."""
    if len(data) > limits.max_picture_bytes:
        _refuse(f"has {len(data)} bytes, the limit is {limits.max_picture_bytes}", field)
    format_name = _sniff(data)
    if format_name is None:
        raise RequestError("is not a PNG, JPEG, WebP or GIF picture", field=field)
    width, height = _size(data, format_name, field)
    if width < 1 or height < 1:
        raise RequestError("has no pixels", field=field)
    if max(width, height) > limits.max_picture_side:
        _refuse(f"is {width}x{height}, the limit of a side is {limits.max_picture_side}", field)
    if width * height > limits.max_picture_pixels:
        _refuse(f"is {width}x{height}, the limit is {limits.max_picture_pixels} pixels", field)
    aspect = max(width, height) / min(width, height)
    most = min(limits.max_aspect_ratio, _MAX_RESIZE_ASPECT)
    if aspect > most:
        raise RequestError(
            f"is {width}x{height}, the limit of the aspect ratio is {most:g}", field=field
        )
    return Picture(data, format_name, width, height)


def resized(width: int, height: int, geometry: ImageGeometry) -> tuple[int, int]:
    """Width and height that a picture is scaled to: multiples of ``geometry.factor`` close to its
    own shape, within the geometry's pixels ("smart resize" of Qwen2-VL, arXiv 2409.12191, 2.1)."""
    factor = geometry.factor
    if max(width, height) > _MAX_RESIZE_ASPECT * min(width, height):
        raise RequestError(f"aspect ratio over {_MAX_RESIZE_ASPECT}", field="picture")
    new_height = round(height / factor) * factor
    new_width = round(width / factor) * factor
    if new_height * new_width > geometry.max_pixels:
        shrink = math.sqrt(height * width / geometry.max_pixels)
        new_height = max(factor, math.floor(height / shrink / factor) * factor)
        new_width = max(factor, math.floor(width / shrink / factor) * factor)
    elif new_height * new_width < geometry.min_pixels:
        grow = math.sqrt(geometry.min_pixels / (height * width))
        new_height = math.ceil(height * grow / factor) * factor
        new_width = math.ceil(width * grow / factor) * factor
    return new_width, new_height


def grid_of(width: int, height: int, geometry: ImageGeometry) -> tuple[int, int, int]:
    """Patches (time, height, width) of a picture of this size; time is 1 for a still picture."""
    new_width, new_height = resized(width, height, geometry)
    return 1, new_height // geometry.patch_size, new_width // geometry.patch_size


def num_tokens(grid: tuple[int, int, int], geometry: ImageGeometry) -> int:
    """Visual tokens of a grid, after merging."""
    return grid[0] * grid[1] * grid[2] // geometry.merge_size**2


def _refuse(message: str, field: str) -> None:
    raise RequestError(message, field=field, status="too_large")


def _sniff(data: bytes) -> str | None:
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    return None


def _size(data: bytes, format_name: str, field: str) -> tuple[int, int]:
    try:
        with Image.open(io.BytesIO(data), formats=[format_name]) as image:
            width, height = image.size
            return (height, width) if is_turned(image) else (width, height)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise RequestError("declares too many pixels", field=field, status="too_large") from None
    except _UNREADABLE:
        raise RequestError("is not a readable picture", field=field) from None
