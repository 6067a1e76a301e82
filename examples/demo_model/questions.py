"""Makes questions with known answers about the drawn pictures, by named kind.

Knows which kinds exist, how each is worded and answered, and how to draw a
fresh example of a kind. Does not know tokens, the model or how answers are judged.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from scenes import (
    COLOURS,
    MAX_SHAPES,
    PLACES,
    SHAPES,
    Picture,
    Shape,
    number_picture,
    shapes_picture,
)

Pictures = tuple[Picture, ...]
Worded = tuple[str, str]
Size = tuple[int, int]

COUNT_WORDS: tuple[str, ...] = ("zero", "one", "two", "three", "four", "five", "six")
ALL_PLACES: tuple[str, ...] = tuple(name for row in PLACES for name in row)
CHAT: dict[str, str] = {
    "What can you do?": "I answer short questions about simple pictures of shapes and digits.",
    "Who are you?": "I am a tiny demo model.",
    "Hello": "Hello! Show me a picture and ask about it.",
    "Hello!": "Hello! Show me a picture and ask about it.",
    "Hi": "Hello! Show me a picture and ask about it.",
}


@dataclass(frozen=True)
class Example:
    """One question of one kind about zero, one or two pictures, with its answer."""

    kind: str
    pictures: Pictures
    question: str
    answer: str


def _with_article(name: str) -> str:
    """The name after its indefinite article."""
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def _unique_names(shapes: tuple[Shape, ...]) -> list[tuple[str, Shape]]:
    """Every way to name exactly one of the shapes, with the shape it names."""
    named: list[tuple[str, Shape]] = []
    for shape in shapes:
        for name in (shape.name, shape.kind, f"{shape.colour} shape"):
            words = name.split()
            hits = [
                other
                for other in shapes
                if (words[-1] in (other.kind, "shape")) and words[0] in (other.colour, other.kind)
            ]
            if len(hits) == 1:
                named.append((name, shape))
    return named


def _colour(pictures: Pictures, rng: random.Random) -> Worded | None:
    shapes = pictures[0].shapes
    if len(shapes) == 1 and rng.random() < 0.3:
        return "What colour is the shape?", shapes[0].colour
    kinds = [shape.kind for shape in shapes]
    alone = [shape for shape in shapes if kinds.count(shape.kind) == 1]
    if not alone:
        return None
    shape = rng.choice(alone)
    wording = rng.choice(["What colour is the {}?", "What color is the {}?"])
    return wording.format(shape.kind), shape.colour


def _shape(pictures: Pictures, rng: random.Random) -> Worded | None:
    shapes = pictures[0].shapes
    if len(shapes) == 1 and rng.random() < 0.5:
        return rng.choice(["What shape is it?", "What is this?"]), f"a {shapes[0].kind}"
    colours = [shape.colour for shape in shapes]
    alone = [shape for shape in shapes if colours.count(shape.colour) == 1]
    if not alone:
        return None
    shape = rng.choice(alone)
    wording = rng.choice(["What shape is {}?", "Which shape is {}?"])
    return wording.format(shape.colour), f"a {shape.kind}"


def _position(pictures: Pictures, rng: random.Random) -> Worded | None:
    named = _unique_names(pictures[0].shapes)
    if not named:
        return None
    name, shape = rng.choice(named)
    return f"Where is the {name}?", pictures[0].place(shape)


def _place(pictures: Pictures, rng: random.Random) -> Worded | None:
    picture = pictures[0]
    by_place = {picture.place(shape): shape for shape in picture.shapes}
    place = rng.choice(list(by_place))
    if rng.random() < 0.2:
        place = rng.choice(ALL_PLACES)
    wording = "What is in the {}?" if place == "middle" else "What is at the {}?"
    shape = by_place.get(place)
    return wording.format(place), _with_article(shape.name) if shape else "nothing"


def _count(pictures: Pictures, rng: random.Random) -> Worded | None:
    wording = rng.choice(["How many shapes are there?", "Count the shapes."])
    return wording, COUNT_WORDS[len(pictures[0].shapes)]


def _count_some(pictures: Pictures, rng: random.Random) -> Worded | None:
    shapes = pictures[0].shapes
    if rng.random() < 0.5:
        present = [shape.colour for shape in shapes]
        colour = rng.choice(list(COLOURS)) if rng.random() < 0.2 else rng.choice(present)
        count = present.count(colour)
        return f"How many {colour} shapes are there?", COUNT_WORDS[count]
    kinds = [shape.kind for shape in shapes]
    kind = rng.choice(SHAPES) if rng.random() < 0.2 else rng.choice(kinds)
    plural = "crosses" if kind == "cross" else f"{kind}s"
    return f"How many {plural} are there?", COUNT_WORDS[kinds.count(kind)]


def _exists(pictures: Pictures, rng: random.Random) -> Worded | None:
    shapes = pictures[0].shapes
    target = rng.choice(shapes)
    if rng.random() < 0.5:
        return f"Is there {_with_article(target.name)}?", "yes"
    kind, colour = target.kind, target.colour
    if rng.random() < 0.6:
        kind = rng.choice(SHAPES)
    if kind == target.kind or rng.random() < 0.4:
        colour = rng.choice(list(COLOURS))
    name = f"{colour} {kind}"
    present = name in [shape.name for shape in shapes]
    return f"Is there {_with_article(name)}?", "yes" if present else "no"


def _background(pictures: Pictures, rng: random.Random) -> Worded | None:
    wording = rng.choice(["What colour is the background?", "What color is the background?"])
    return wording, pictures[0].background


def _describe(pictures: Pictures, rng: random.Random) -> Worded | None:
    picture = pictures[0]
    if len(picture.shapes) > 2:
        return None
    ordered = sorted(picture.shapes, key=lambda s: ALL_PLACES.index(picture.place(s)))
    parts = [_with_article(shape.name) for shape in ordered]
    said = " and ".join(parts) + f" on a {picture.background} background."
    return rng.choice(["Describe the picture.", "Describe the image."]), said[0].upper() + said[1:]


def _digit(pictures: Pictures, rng: random.Random) -> Worded | None:
    if len(pictures[0].number) == 1:
        wording = rng.choice(["Which digit is this?", "What digit is shown?"])
    else:
        wording = rng.choice(["What number is written?", "What number is shown?"])
    return wording, pictures[0].number


def _digit_colour(pictures: Pictures, _rng: random.Random) -> Worded | None:
    noun = "digit" if len(pictures[0].number) == 1 else "number"
    return f"What colour is the {noun}?", pictures[0].number_colour


def _pair_find(pictures: Pictures, rng: random.Random) -> Worded | None:
    names = [[shape.name for shape in picture.shapes] for picture in pictures]
    which = rng.randrange(2)
    only = [name for name in names[which] if name not in names[1 - which]]
    if not only:
        return None
    return f"Which picture has the {rng.choice(only)}?", ("the first", "the second")[which]


def _pair_same(pictures: Pictures, rng: random.Random) -> Worded | None:
    first, second = pictures[0].shapes, pictures[1].shapes
    if len(first) != 1 or len(second) != 1:
        return None
    if rng.random() < 0.5:
        same = first[0].kind == second[0].kind
        return "Do both pictures show the same shape?", "yes" if same else "no"
    same = first[0].colour == second[0].colour
    return "Are both shapes the same colour?", "yes" if same else "no"


def _pair_read(pictures: Pictures, rng: random.Random) -> Worded | None:
    which = rng.randrange(2)
    shapes = pictures[which].shapes
    if len(shapes) != 1:
        return None
    ordinal = ("first", "second")[which]
    if rng.random() < 0.5:
        return f"What colour is the shape in the {ordinal} picture?", shapes[0].colour
    return f"What shape is in the {ordinal} picture?", f"a {shapes[0].kind}"


def _chat(_pictures: Pictures, rng: random.Random) -> Worded | None:
    question = rng.choice(list(CHAT))
    return question, CHAT[question]


Maker = Callable[[Pictures, random.Random], Worded | None]
FAMILIES: dict[str, dict[str, Maker]] = {
    "shapes": {
        "colour": _colour,
        "shape": _shape,
        "position": _position,
        "place": _place,
        "count": _count,
        "count_some": _count_some,
        "exists": _exists,
        "background": _background,
        "describe": _describe,
    },
    "digit": {"digit": _digit, "digit_colour": _digit_colour, "background": _background},
    "pair": {"pair_find": _pair_find, "pair_same": _pair_same, "pair_read": _pair_read},
    "chat": {"chat": _chat},
}
KINDS: tuple[str, ...] = tuple(dict.fromkeys(kind for kinds in FAMILIES.values() for kind in kinds))


EVEN_COUNTS: tuple[float, ...] = (1,) * MAX_SHAPES


def draw_pictures(
    family: str,
    rng: random.Random,
    sizes: tuple[Size, ...],
    counts: tuple[float, ...] = EVEN_COUNTS,
    digits: tuple[int, ...] = (1,),
) -> Pictures:
    """Invent the pictures of one scene.

    ``counts`` weighs one shape, two shapes and so on; ``digits`` are the lengths of a number.
    """
    if family == "chat":
        return ()
    if family == "digit":
        return (number_picture(rng, *sizes[0], rng.choice(digits)),)
    if family == "shapes":
        count = rng.choices(range(1, MAX_SHAPES + 1), counts)[0]
        return (shapes_picture(rng, *sizes[0], count),)
    count = rng.choice([1, 1, 1, 2, 3])
    first = shapes_picture(rng, *sizes[0], count)
    base = first.shapes[0]
    like = Shape(
        base.kind if rng.random() < 0.4 else rng.choice(SHAPES),
        base.colour if rng.random() < 0.4 else rng.choice(list(COLOURS)),
        0,
        0,
        0,
    )
    return first, shapes_picture(rng, *sizes[1], count, like)


def ask(
    family: str,
    pictures: Pictures,
    rng: random.Random,
    wanted: int,
    favoured: tuple[str, ...] = (),
) -> list[Example]:
    """Ask up to ``wanted`` questions about one scene: favoured kinds, then all, evenly used."""
    makers = FAMILIES[family]
    examples: list[Example] = []
    seen: set[str] = set()
    kinds = [kind for kind in favoured if kind in makers]
    while len(examples) < wanted:
        before = len(examples)
        for kind in kinds or rng.sample(list(makers), len(makers)):
            worded = makers[kind](pictures, rng)
            if worded and worded[0] not in seen and len(examples) < wanted:
                seen.add(worded[0])
                examples.append(Example(kind, pictures, *worded))
        if len(examples) == before and not kinds:
            break
        kinds = []
    return examples


def fresh_example(kind: str, rng: random.Random, sizes: tuple[Size, ...]) -> Example:
    """Draw new scenes of the kind's family until one allows a question of that kind."""
    family = next(name for name, makers in FAMILIES.items() if kind in makers)
    while True:
        pictures = draw_pictures(family, rng, sizes)
        worded = FAMILIES[family][kind](pictures, rng)
        if worded:
            return Example(kind, pictures, *worded)
