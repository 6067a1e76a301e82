"""Headers, limits and grid arithmetic, compared with Transformers' own."""

import io
import struct
import zlib

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from tests.inputs.pictures import encoded, noise
from triptych.core.config import LimitsConfig
from triptych.core.errors import RequestError
from triptych.inputs import decode_child
from triptych.inputs.header import read_header
from triptych.inputs.images import grid_of, num_tokens, probe, resized
from triptych.inputs.model_card import load_card

LIMITS = LimitsConfig()


def pixels(data, format_name, size):
    header = read_header(data)
    assert header.format == format_name
    stored = header.width, header.height
    return decode_child.pixels(data, format_name, header.orientation, stored, size)


CARDS = [load_card("oracle"), load_card("examples/demo_model")]


@settings(max_examples=400, deadline=None)
@given(
    width=st.integers(1, 5000) | st.sampled_from([1, 13, 14, 15, 27, 28, 29, 41, 42, 43, 16_384]),
    height=st.integers(1, 5000) | st.sampled_from([1, 13, 14, 15, 27, 28, 29, 41, 42, 43, 16_384]),
    card=st.sampled_from(CARDS),
)
def test_sizes_equal_transformers(width, height, card):
    geometry = card.image
    if max(width, height) > 200 * min(width, height):
        with pytest.raises(RequestError):
            resized(width, height, geometry)
        return
    expected = smart_resize(
        height, width, geometry.factor, geometry.min_pixels, geometry.max_pixels
    )
    new_width, new_height = resized(width, height, geometry)
    assert (new_height, new_width) == expected
    grid = grid_of(width, height, geometry)
    assert grid == (1, new_height // 14, new_width // 14)
    assert num_tokens(grid, geometry) * 4 == grid[1] * grid[2] > 0


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 17), (100, 1), (7, 3), (28, 28)])
@pytest.mark.parametrize("format_name", ["PNG", "JPEG", "WEBP", "GIF"])
def test_small_and_thin_pictures(width, height, format_name):
    picture = probe(encoded(noise(width, height), format_name), LIMITS)
    assert (picture.format, picture.width, picture.height) == (format_name, width, height)
    size = resized(width, height, CARDS[0].image)
    assert len(pixels(picture.data, picture.format, size)) == size[0] * size[1] * 3


LIMIT_CASES = [
    ("max_picture_bytes", 200, (20, 20), (60, 60)),
    ("max_picture_pixels", 400, (20, 20), (21, 20)),
    ("max_picture_side", 30, (30, 9), (31, 9)),
    ("max_aspect_ratio", 2.0, (20, 10), (21, 10)),
]


@pytest.mark.parametrize(("name", "limit", "good", "bad"), LIMIT_CASES)
def test_limits(name, limit, good, bad):
    limits = msgspec.structs.replace(LIMITS, **{name: limit})
    flat = [Image.new("RGB", size) for size in (good, bad)]
    flat[1] = noise(*bad) if name == "max_picture_bytes" else flat[1]
    assert probe(encoded(flat[0]), limits).width == good[0]
    with pytest.raises(RequestError, match=str(limit).rstrip("0").rstrip(".")) as caught:
        probe(encoded(flat[1]), limits, "messages[0].picture")
    assert caught.value.field == "messages[0].picture"


@pytest.mark.parametrize("format_name", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_orientation(format_name, turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    image = noise(40, 23)
    more = {"lossless": True} if format_name == "WEBP" else {}
    data = encoded(image, format_name, exif=exif, **more)
    picture = probe(data, LIMITS)
    assert (picture.width, picture.height) == ((40, 23) if turn < 5 else (23, 40))
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    size = (56, 28)
    expected = upright.resize(size, Image.Resampling.BICUBIC).tobytes()
    assert pixels(data, format_name, size) == expected


def test_nonsense_in_exif_counts_as_upright():
    for exif in (b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*" + bytes(50)):
        picture = probe(encoded(noise(40, 23), "PNG", exif=exif), LIMITS)
        assert (picture.width, picture.height) == (40, 23)


def test_exif_behind_the_pixels_is_not_read():
    """Pillow itself would decode the whole picture to look there."""
    exif = Image.Exif()
    exif[0x0112] = 6
    raw = exif.tobytes().removeprefix(b"Exif\0\0")
    data = encoded(noise(40, 23))
    tail = struct.pack(">I", len(raw)) + b"eXIf" + raw
    tail += struct.pack(">I", zlib.crc32(b"eXIf" + raw))
    data = data[:-12] + tail + data[-12:]
    assert (probe(data, LIMITS).width, probe(data, LIMITS).height) == (40, 23)
    assert pixels(data, "PNG", (40, 23)) == noise(40, 23).tobytes()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_modes(mode):
    image = noise(29, 17, mode)
    data = encoded(image)
    flat = np.frombuffer(pixels(data, "PNG", (29, 17)), np.uint8).reshape(17, 29, 3)
    if mode in ("LA", "RGBA"):
        rgba = np.asarray(image.convert("RGBA"), np.float64)
        alpha = rgba[:, :, 3:] / 255
        expected = rgba[:, :, :3] * alpha + 255 * (1 - alpha)
    elif mode == "I;16":
        expected = (np.asarray(image) >> 8)[:, :, None]
    else:
        expected = np.asarray(image.convert("RGB"), np.float64)
    assert np.abs(flat - expected).max() <= 1


def test_transparency_of_a_palette_is_white():
    image = noise(20, 20).convert("P", palette=Image.Palette.ADAPTIVE)
    index = image.getpixel((3, 3))
    data = encoded(image, "GIF", transparency=index)
    flat = np.frombuffer(pixels(data, "GIF", (20, 20)), np.uint8).reshape(20, 20, 3)
    assert tuple(flat[3, 3]) == (255, 255, 255)


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (20, 20), color) for color in ("red", "blue", "lime")]
    for name in ("GIF", "WEBP", "PNG"):
        more = {"lossless": True} if name == "WEBP" else {}
        data = encoded(frames[0], name, save_all=True, append_images=frames[1:], **more)
        assert probe(data, LIMITS).format == name
        assert pixels(data, name, (20, 20))[:3] == b"\xff\0\0"
