"""What an engine decides and an executor computes: plans in, results out. Integers only.

``plan -> execute -> apply``: a plan names blocks and tokens; the executor reads and writes those
blocks; the result names tokens. An executor keeps no state per sequence.
"""

from collections.abc import Sequence

import msgspec

from triptych.core.ids import BlockId, JobId
from triptych.core.request import Item, Sampling


class Draw(msgspec.Struct, frozen=True):
    """Draw a token behind the last token of a segment."""

    sampling: Sampling
    position: int
    """Position of the drawn token in the sequence: with the seed, all the randomness there is."""
    prompt_len: int
    history: tuple[int, ...] = ()
    """All tokens before ``position`` if ``sampling.needs_history``, else empty."""


class PlacedItem(msgspec.Struct, frozen=True):
    """A visual item and, if any of its tokens is computed in this step, the embedding blocks."""

    item: Item
    blocks: tuple[BlockId, ...] = ()


class Segment(msgspec.Struct, frozen=True):
    """Compute the KV of tokens ``[start, start + len(tokens))`` of one sequence."""

    job: JobId
    start: int
    tokens: tuple[int, ...]
    blocks: tuple[BlockId, ...]
    """The sequence's block table, covering at least ``[0, start + len(tokens))``."""
    items: tuple[PlacedItem, ...] = ()
    """Every item of the prompt that begins before the segment's end (positions depend on them)."""
    draw: Draw | None = None
    salt: bytes = b""
    """Tenant salt; only the oracle model reads it."""

    @property
    def end(self) -> int:
        """First position behind the segment."""
        return self.start + len(self.tokens)

    def following(self, token: int) -> "Segment":
        """That of ``token``, drawn behind this one, which draws the next."""
        draw, end = self.draw, self.end
        if draw is not None:
            history = (*draw.history, token) if draw.history else ()
            draw = Draw(draw.sampling, end + 1, draw.prompt_len, history)
        return Segment(self.job, end, (token,), self.blocks, self.items, draw, self.salt)


class LanguagePlan(msgspec.Struct, frozen=True):
    """One step of a language instance. Decoding segments first."""

    segments: tuple[Segment, ...]
    steps: int = 1
    """How often the step may be executed in a row, each time with the token that it drew before in
    every segment. More than 1 only for executors that say so (``LanguageExecutor.max_steps``)."""

    def following(self, drawn: Sequence["Drawn"]) -> "LanguagePlan":
        """The next step of a run, behind one in which every segment drew."""
        pairs = zip(self.segments, drawn, strict=True)
        return LanguagePlan(tuple(segment.following(one.token) for segment, one in pairs))

    @property
    def num_tokens(self) -> int:
        """Tokens computed by the step."""
        return sum(len(segment.tokens) for segment in self.segments)


class Drawn(msgspec.Struct, frozen=True):
    """A drawn token with what was asked about it."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class LanguageResult(msgspec.Struct, frozen=True):
    """Drawn tokens of the plan's segments, ``None`` where none was asked for; same order."""

    drawn: tuple[Drawn | None, ...]
    """In the first step that was not told of while the run went on (``OnDrawn``)."""
    seconds: float
    """Since the last step that was."""
    later: tuple[tuple[int, ...], ...] = ()
    """Of each segment, the tokens drawn in the steps behind that one; empty for a single step."""


class VisionTask(msgspec.Struct, frozen=True):
    """Encode one picture into the named embedding blocks."""

    job: JobId
    item: Item
    pixels: object
    """uint8 array (height, width, 3), already resized to the item's grid; opaque to engines."""
    blocks: tuple[BlockId, ...]


SLICES = (0.25, 0.5, 0.75)
"""Parts of a device that a step of pictures may be bounded to, beside the whole."""
ETA = 0.8
"""Arithmetic on a part ``s`` of a device takes ``s ** -ETA`` as long as on all of it."""


class VisionPlan(msgspec.Struct, frozen=True):
    """One step of an encode instance: pictures of any size, no padding."""

    tasks: tuple[VisionTask, ...]
    share: float = 1.0
    """Part that it may take of what pictures may have at all of the device; the rest stays with the
    language model. Only a GPU is divided."""

    def on_all_s(self, seconds: float) -> float:
        """What the step that took ``seconds`` would have taken with a share of 1: whoever learns
        how fast an instance is does not learn what it chose."""
        return seconds if self.share == 1.0 else seconds * self.share**ETA


class VisionResult(msgspec.Struct, frozen=True):
    """The plan's tasks are written to their blocks."""

    seconds: float
