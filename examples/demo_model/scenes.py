"""Draws the demo's pictures: coloured shapes or digits on a plain background.

Knows shapes, colours, places and how to draw them from a seeded generator.
Does not know questions (questions.py), tokens or the model.

Run as a script it writes the example pictures: ``scenes.py ../pictures``.
"""

from __future__ import annotations

import math
import random
import sys
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (225, 25, 25),
    "green": (20, 165, 50),
    "blue": (30, 60, 230),
    "yellow": (250, 220, 20),
    "orange": (255, 130, 0),
    "purple": (145, 40, 190),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (250, 250, 250),
    "grey": (128, 128, 128),
    "black": (8, 8, 8),
}
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "cross")
PLACES: tuple[tuple[str, ...], ...] = (
    ("top left", "top", "top right"),
    ("left", "middle", "right"),
    ("bottom left", "bottom", "bottom right"),
)
MAX_SHAPES = 6
MAX_RADIUS = 60.0


@dataclass(frozen=True)
class Shape:
    """One filled shape: what it is, its colour, its centre and its radius in pixels."""

    kind: str
    colour: str
    x: float
    y: float
    radius: float

    @property
    def name(self) -> str:
        """Colour and kind, as a question or an answer says it."""
        return f"{self.colour} {self.kind}"


@dataclass(frozen=True)
class Picture:
    """What one picture shows: either shapes, or a number written in digits."""

    width: int
    height: int
    background: str
    shapes: tuple[Shape, ...] = ()
    number: str = ""
    number_colour: str = ""
    number_box: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def place(self, shape: Shape) -> str:
        """The ninth of the picture that holds the shape's centre."""
        row = min(2, int(3 * shape.y / self.height))
        column = min(2, int(3 * shape.x / self.width))
        return PLACES[row][column]

    def draw(self) -> Image.Image:
        """Draw the picture as RGB."""
        image = Image.new("RGB", (self.width, self.height), BACKGROUNDS[self.background])
        pen = ImageDraw.Draw(image)
        for shape in self.shapes:
            _draw_shape(pen, shape)
        if self.number:
            _draw_number(pen, self)
        return image


def _draw_shape(pen: ImageDraw.ImageDraw, shape: Shape) -> None:
    x, y, r = shape.x, shape.y, shape.radius
    fill = COLOURS[shape.colour]
    if shape.kind == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=fill)
    elif shape.kind == "square":
        half = 0.86 * r
        pen.rectangle((x - half, y - half, x + half, y + half), fill=fill)
    elif shape.kind == "triangle":
        pen.polygon([(x, y - r), (x + r, y + 0.8 * r), (x - r, y + 0.8 * r)], fill=fill)
    elif shape.kind == "star":
        points = []
        for corner in range(10):
            reach = r * 1.05 if corner % 2 == 0 else 0.42 * r
            angle = math.pi * corner / 5 - math.pi / 2
            points.append((x + reach * math.cos(angle), y + reach * math.sin(angle)))
        pen.polygon(points, fill=fill)
    else:
        arm = 0.32 * r
        pen.rectangle((x - r, y - arm, x + r, y + arm), fill=fill)
        pen.rectangle((x - arm, y - r, x + arm, y + r), fill=fill)


def _draw_number(pen: ImageDraw.ImageDraw, picture: Picture) -> None:
    along, down, size = picture.number_box
    font = ImageFont.load_default(size=round(size))
    pen.text(
        (along * picture.width, down * picture.height),
        picture.number,
        fill=COLOURS[picture.number_colour],
        font=font,
        anchor="mm",
        stroke_width=max(1, round(size / 40)),
    )


def shapes_picture(
    rng: random.Random, width: int, height: int, count: int, like: Shape | None = None
) -> Picture:
    """Scatter ``count`` shapes over the cells of a 1x1, 2x2 or 3x3 grid, no cell used twice.

    ``like`` gives the first shape's kind and colour.
    """
    fewest = math.ceil(math.sqrt(count))
    grid = rng.choice([1, 1, 2, 3]) if count == 1 else rng.randint(max(2, fewest), 3)
    cells = rng.sample(range(grid * grid), count)
    across, down = width / grid, height / grid
    shapes = []
    for index, cell in enumerate(cells):
        radius = min(MAX_RADIUS, min(across, down) * rng.uniform(0.38, 0.47))
        room_x = min(across / 2 - radius - 1, (0.05 if grid == 2 else 0.08) * width)
        room_y = min(down / 2 - radius - 1, (0.05 if grid == 2 else 0.08) * height)
        x = (cell % grid + 0.5) * across + rng.uniform(-1, 1) * max(0.0, room_x)
        y = (cell // grid + 0.5) * down + rng.uniform(-1, 1) * max(0.0, room_y)
        kind = like.kind if like and index == 0 else rng.choice(SHAPES)
        colour = like.colour if like and index == 0 else rng.choice(list(COLOURS))
        shapes.append(Shape(kind, colour, x, y, radius))
    background = rng.choice(list(BACKGROUNDS))
    return Picture(width, height, background, tuple(shapes))


def number_picture(rng: random.Random, width: int, height: int, digits: int) -> Picture:
    """Write ``digits`` random digits in one colour, as large as the picture allows."""
    number = "".join(rng.choice("0123456789") for _ in range(digits))
    most = min(0.95 * height, 1.45 * width / digits, 170.0)
    size = most * rng.uniform(0.72, 1.0)
    room_x = max(0.0, (width - 0.62 * size * digits) / 2 / width - 0.02)
    room_y = max(0.0, (height - 0.75 * size) / 2 / height - 0.02)
    box = (
        0.5 + rng.uniform(-1, 1) * min(room_x, 0.2),
        0.5 + rng.uniform(-1, 1) * min(room_y, 0.2),
        size,
    )
    return Picture(
        width,
        height,
        rng.choice(list(BACKGROUNDS)),
        number=number,
        number_colour=rng.choice(list(COLOURS)),
        number_box=box,
    )


def write_examples(folder: Path) -> None:
    """Write the example pictures that ``pictures/README.md`` lists."""
    folder.mkdir(parents=True, exist_ok=True)
    one = Picture(168, 168, "white", (Shape("circle", "red", 84, 84, 52),))
    first = Picture(112, 112, "white", (Shape("star", "blue", 28, 28, 23),))
    second = Picture(112, 112, "black", (Shape("star", "yellow", 56, 56, 40),))
    several = (
        Shape("circle", "red", 36, 30, 24),
        Shape("square", "blue", 112, 28, 24),
        Shape("star", "yellow", 188, 84, 25),
        Shape("triangle", "green", 112, 138, 24),
        Shape("circle", "purple", 38, 138, 23),
    )
    wide_apart = (
        Shape("star", "orange", 112, 110, 58),
        Shape("circle", "green", 336, 114, 60),
        Shape("cross", "purple", 334, 338, 56),
    )
    pictures = {
        "red-circle.png": one,
        "five-shapes.png": Picture(224, 168, "black", several),
        "digit.png": Picture(
            112, 112, "white", number="7", number_colour="blue", number_box=(0.5, 0.5, 90)
        ),
        "pair-first.png": first,
        "pair-second.png": second,
        "large.png": Picture(448, 448, "grey", wide_apart),
    }
    for name, picture in pictures.items():
        picture.draw().save(folder / name)


if __name__ == "__main__":
    write_examples(Path(sys.argv[1] if len(sys.argv) > 1 else "pictures"))
