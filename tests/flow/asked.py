"""Questions that the demo model was made for, held out from what it was taught."""

import importlib.util
import io
import random
import sys
from collections.abc import Sequence

from tests.checkpoints import DEMO
from triptych.core.request import Picture

Parts = list[str | Picture]


def _module(name: str):
    """A file of the example, which is no package."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, DEMO / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


SMALL = ((112, 112), (140, 112))


def questions(count: int, sizes: Sequence[tuple[int, int]] = SMALL) -> list[Parts]:
    """One of each kind in turn: pictures of those sizes, then the question about them."""
    _module("scenes")
    made = _module("questions")
    found: list[Parts] = []
    for index in range(count):
        rng = random.Random(f"held-out/asked/{index}")
        kind = tuple(made.KINDS)[index % len(made.KINDS)]
        example = made.fresh_example(kind, rng, sizes)
        found.append([*(_drawn(picture) for picture in example.pictures), example.question])
    return found


def _drawn(picture) -> Picture:
    data = io.BytesIO()
    picture.draw().save(data, "PNG")
    return Picture(data.getvalue(), "PNG", picture.width, picture.height)
