"""Pictures for tests, drawn from a seed."""

import io

import numpy as np
from PIL import Image


def noise(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """A smooth random picture: JPEG keeps it recognisable, every pixel matters."""
    rng = np.random.default_rng(seed)
    bands = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4, "P": 3, "1": 1, "I;16": 1}[mode]
    small = rng.integers(0, 256, (max(1, height // 4 + 1), max(1, width // 4 + 1), bands), np.uint8)
    if mode == "I;16":
        wide = (small[:, :, 0].astype(np.uint16) << 8) | 0x7F
        return Image.fromarray(wide).resize((width, height), Image.Resampling.NEAREST)
    base = {"LA": "LA", "RGBA": "RGBA", "CMYK": "CMYK", "L": "L", "1": "L"}.get(mode, "RGB")
    image = Image.fromarray(small[:, :, 0] if bands == 1 else small, base if bands == 2 else None)
    if base == "CMYK":
        image = Image.frombytes("CMYK", (small.shape[1], small.shape[0]), small.tobytes())
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    return image.convert(mode) if mode in ("P", "1") else image


def encoded(image: Image.Image, format_name: str = "PNG", **more) -> bytes:
    out = io.BytesIO()
    image.save(out, format_name, **more)
    return out.getvalue()
