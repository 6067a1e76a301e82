"""Pictures and prompts for flow tests, drawn from a seed."""

import io
import random

import numpy as np
from PIL import Image

from triptych.core.request import Picture

WORDS = [
    "red",
    "blue",
    "small",
    "large",
    "left",
    "right",
    "circle",
    "square",
    "count",
    "what",
    "where",
    "how",
    "many",
    "the",
    "is",
    "of",
]


def picture(rng: random.Random, lowest: int = 28, highest: int = 140) -> Picture:
    """A noisy PNG of odd size."""
    width, height = rng.randint(lowest, highest), rng.randint(lowest, highest)
    noise = np.random.default_rng(rng.getrandbits(32)).integers(0, 256, (height, width, 3), "uint8")
    data = io.BytesIO()
    Image.fromarray(noise).save(data, "PNG")
    return Picture(data.getvalue(), "PNG", width, height)


def words(rng: random.Random, lowest: int = 1, highest: int = 30) -> str:
    """Some words."""
    return " ".join(rng.choices(WORDS, k=rng.randint(lowest, highest))) + " "


def parts(
    rng: random.Random, num_pictures: int, shared: list[str | Picture]
) -> list[str | Picture]:
    """Words with pictures between them, often behind one of the shared beginnings."""
    found: list[str | Picture] = []
    if shared and rng.random() < 0.6:
        found += shared[: rng.randint(1, len(shared))]
    for _ in range(num_pictures):
        found += [words(rng, 1, 8), picture(rng)]
    return [*found, words(rng)]
