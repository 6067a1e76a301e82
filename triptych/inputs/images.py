"""What a picture may be, and how many tokens it becomes: limits and grid arithmetic.

Works from the header alone (``header``); formats are told by their first bytes, not by what the
client says. Does not know how pixels are decoded (``decode``).
"""

import math

from triptych.core.config import LimitsConfig
from triptych.core.errors import RequestError
from triptych.core.request import Picture
from triptych.inputs.header import UnreadableError, read_header
from triptych.inputs.model_card import ImageGeometry

_MAX_RESIZE_ASPECT = 200
"""Qwen2-VL's processor refuses more."""


def probe(data: bytes, limits: LimitsConfig, field: str = "picture") -> Picture:
    """The picture with its size as shown (EXIF rotation applied), or RequestError that names
    ``field`` and the limit."""
    if len(data) > limits.max_picture_bytes:
        _refuse(f"has {len(data)} bytes, the limit is {limits.max_picture_bytes}", field)
    try:
        header = read_header(data)
    except UnreadableError:
        raise RequestError("is not a readable picture", field=field) from None
    if header is None:
        raise RequestError("is not a PNG, JPEG, WebP or GIF picture", field=field)
    width, height = header.width, header.height
    if width < 1 or height < 1:
        raise RequestError("has no pixels", field=field)
    if max(width, height) > limits.max_picture_side:
        _refuse(f"is {width} by {height}, the limit of a side is {limits.max_picture_side}", field)
    if width * height > limits.max_picture_pixels:
        _refuse(f"is {width} by {height}, the limit is {limits.max_picture_pixels} pixels", field)
    aspect = max(width, height) / min(width, height)
    most = min(limits.max_aspect_ratio, _MAX_RESIZE_ASPECT)
    if aspect > most:
        raise RequestError(
            f"is {width} by {height}, the limit of the aspect ratio is {most:g}", field=field
        )
    if header.is_turned:
        width, height = height, width
    return Picture(data, header.format, width, height)


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
