"""From numbers to words: an arrival as turns of a conversation, with text and drawn pictures.

Text of a seed is a stream of common words, cut to a length; a picture is drawn from its number.
How many tokens a word has is the server's secret: ``Wording`` carries what calibration found.
Knows no transport.
"""

import random
from collections import OrderedDict
from collections.abc import Mapping

import msgspec

from bench.workload import Arrival, Image, Text
from bench.workloads import picture

_TEXT = """
the of and to in is that it was for on are as with his they at be this from have or by one
had not but what all were when we there can an your which their said if do will each about
how up out them then she many some so these would other into has more her two like him see
time could no make than first been its who now people my made over did down only way find
use may water long little very after words called just where most know get through back much
before go good new write our used me man too any day same right look think also around
another came come work three word must because does part even place well such here take why
things help put years different away again off went old number great tell men say small
"""
WORDS = tuple(_TEXT.split())
"""Each a token of its own for most tokenizers."""

_ALBUM_BYTES = 1 << 29
"""Of pictures kept; a workload that has more draws them again, while requests are due."""


class Wording(msgspec.Struct, frozen=True):
    """What is known of the server's tokenizer and template."""

    tokens_per_word: float = 1.0
    template_tokens: float = 0.0
    """Around a prompt of one user turn."""
    is_measured: bool = False


class Turn(msgspec.Struct, frozen=True):
    """What one side said: texts (``str``) and pictures (PNG ``bytes``) in order."""

    role: str
    parts: tuple[str | bytes, ...]


class Ask(msgspec.Struct, frozen=True):
    """One request as every transport sends it."""

    turns: tuple[Turn, ...]
    num_output: int
    slo: str = ""
    """Name of an SLO class; empty: the server's own default."""
    timeout_s: float = 120.0


def words_of(seed: int, count: int) -> str:
    """``count`` words; more words of the same seed begin with the fewer."""
    source = random.Random(f"text {seed}")
    return " ".join(source.choice(WORDS) for _ in range(count))


class Album:
    """Pictures by number and size, drawn once."""

    def __init__(self, size_bytes: int = _ALBUM_BYTES) -> None:
        self._left_bytes = size_bytes
        self._kept: OrderedDict[tuple[int, int, int], bytes] = OrderedDict()

    def png(self, image: Image) -> bytes:
        """A PNG of exactly ``width`` x ``height`` pixels; equal arguments, equal bytes."""
        key = (image.content, image.width, image.height)
        if key not in self._kept:
            drawn = picture(random.Random(f"picture {image.content}"), image.width, image.height)
            self._kept[key] = drawn
            self._left_bytes -= len(drawn)
            while self._left_bytes < 0 and len(self._kept) > 1:
                self._left_bytes += len(self._kept.popitem(last=False)[1])
        self._kept.move_to_end(key)
        return self._kept[key]


class Composer:
    """Writes arrivals out."""

    def __init__(self, wording: Wording, album: Album | None = None) -> None:
        self.wording = wording
        self._album = album or Album()

    def draw(self, arrival: Arrival) -> None:
        """Draw the pictures ahead of time: that costs a client more than anything else it does."""
        for image in arrival.images:
            self._album.png(image)

    def ask(self, arrival: Arrival, answers: Mapping[int, str], timeout_s: float) -> Ask:
        """``answers``: seeds of the session's earlier answers, and what was really answered (empty
        where it has not come or failed: then words stand in its place)."""
        turns: list[Turn] = []
        said: list[str | bytes] = []
        for part in arrival.parts:
            if isinstance(part, Image):
                said.append(self._album.png(part))
            elif part.seed in answers:
                turns += [Turn("user", tuple(said))] if said else []
                turns.append(Turn("assistant", (answers[part.seed] or self._text(part),)))
                said = []
            else:
                said.append(self._text(part))
        turns += [Turn("user", tuple(said))] if said else []
        return Ask(tuple(turns), arrival.num_output, arrival.slo, timeout_s)

    def _text(self, part: Text) -> str:
        count = max(1, round(part.num_tokens / self.wording.tokens_per_word))
        return words_of(part.seed, count)
