"""What is asked in a measurement: drawn pictures, a question, a fixed number of output tokens.

A pure function of the seed. Every picture is new, so no cache can answer. Knows no server.
"""

import io
import random

import msgspec
from PIL import Image, ImageDraw

from triptych.core.config_kinds import Count

SIDES = (112, 168, 224, 336)
"""Sides in pixels; with patches of 28 these are 16, 36, 64 and 144 visual tokens."""
_QUESTIONS = (
    "What do you see?",
    "How many shapes are there, and which one is the largest?",
    "Which colour is the shape on the left?",
    "Is there a circle in the picture? Say where it is.",
)


class Ask(msgspec.Struct, frozen=True):
    """One request of a workload."""

    pictures: tuple[bytes, ...]
    """PNG files."""
    question: str
    max_tokens: int
    """Exactly so many tokens come back: the end of sequence is ignored."""


class Mix(msgspec.Struct, frozen=True):
    """What the requests of a workload are drawn from, each value equally likely."""

    sides: tuple[Count, ...] = SIDES
    num_pictures: tuple[int, ...] = (1, 1, 1, 2)
    num_tokens: tuple[Count, ...] = (16, 24, 32, 48)


def draw(count: int, seed: int, mix: Mix | None = None) -> tuple[Ask, ...]:
    """``count`` requests; equal seeds give equal bytes."""
    mix = mix or Mix()
    source = random.Random(f"workload {seed}")
    return tuple(
        Ask(
            pictures=tuple(
                picture(source, source.choice(mix.sides), source.choice(mix.sides))
                for _ in range(source.choice(mix.num_pictures))
            ),
            question=source.choice(_QUESTIONS),
            max_tokens=source.choice(mix.num_tokens),
        )
        for _ in range(count)
    )


def picture(source: random.Random, width: int, height: int) -> bytes:
    """A PNG with a few coloured shapes on a coloured ground."""
    image = Image.new("RGB", (width, height), _colour(source))
    pen = ImageDraw.Draw(image)
    for _ in range(source.randint(1, 4)):
        left, top = source.randrange(width), source.randrange(height)
        box = (left, top, left + width // 4, top + height // 4)
        shape = source.choice((pen.ellipse, pen.rectangle))
        shape(box, fill=_colour(source))
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


def _colour(source: random.Random) -> tuple[int, int, int]:
    return (source.randrange(256), source.randrange(256), source.randrange(256))
