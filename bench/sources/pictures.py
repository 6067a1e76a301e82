"""Pictures as numbers: a size for a number of visual tokens, and which pictures come again.

Knows ``SIDE``, the pixels of a token's side, and no model's own bounds on sizes.
"""

import math
import random
from collections import deque
from functools import lru_cache

from bench.workload import SIDE, Image

MAX_ASPECT = 3
"""The longer side is at most about so many times the shorter one."""
_BITS = 62
"""Of a content's number: a signed 64-bit number wherever it is stored, and two of a million alike
by chance once in ten million workloads."""


@lru_cache(maxsize=65_536)
def size_of(tokens: int) -> tuple[int, int]:
    """(width, height) in pixels, multiples of ``SIDE``, of a picture of ``tokens`` visual tokens.

    Of all rectangles up to ``MAX_ASPECT`` the one nearest in area, and of these the squarest; wide
    rather than tall. Off by less than 3 % from 64 tokens on (most at 68, which becomes 10 by 7), by
    at most one token in seven below (7 becomes 4 by 2).
    """
    if tokens < 1:
        raise ValueError("tokens: at least one")
    low = max(1, round(math.sqrt(tokens / MAX_ASPECT)))
    best = (tokens + 1, 0, 0, 0)
    for rows in range(low, math.isqrt(tokens) + 1):
        columns = round(tokens / rows)
        best = min(best, (abs(rows * columns - tokens), columns - rows, columns, rows))
    return best[2] * SIDE, best[3] * SIDE


def image_of(tokens: int, content: int) -> Image:
    """A picture of about ``tokens`` visual tokens, see ``size_of``."""
    width, height = size_of(tokens)
    return Image(content, width, height)


def content(source: random.Random) -> int:
    """Number of a picture, or seed of a text, that was not there before."""
    return source.getrandbits(_BITS)


class Pictures:
    """Draws pictures, some of them again."""

    def __init__(self, source: random.Random, repeat: float = 0.0, recent: int = 64) -> None:
        """``repeat``: probability that a picture is one of the last ``recent`` new ones, each
        equally likely, whatever size was asked for."""
        self._source = source
        self._repeat = repeat
        self._recent: deque[Image] = deque(maxlen=recent)

    def draw(self, tokens: int) -> Image:
        """A picture of about ``tokens`` visual tokens, or one seen before."""
        return self.sized(*size_of(tokens))

    def sized(self, width: int, height: int) -> Image:
        """The same for a size in pixels."""
        source, recent = self._source, self._recent
        if self._repeat and source.random() < self._repeat and recent:
            return source.choice(recent)
        image = Image(source.getrandbits(_BITS), width, height)
        if self._repeat:
            recent.append(image)
        return image
