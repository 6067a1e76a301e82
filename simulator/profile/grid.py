"""Which steps a profile runs: plans that an engine could make, over what the configuration allows.

Integers only; runs nothing. Tokens and block tables are arbitrary: what they hold does not change
how long a step takes.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from bench.sources.pictures import size_of
from scheduler.fit import Step
from triptych.core.config import Config
from triptych.core.hashing import digest
from triptych.core.ids import BlockId, JobId
from triptych.core.plan import Draw, LanguagePlan, Segment, VisionPlan, VisionTask
from triptych.core.request import Item, Sampling
from triptych.inputs.model_card import ModelCard


class Shape(NamedTuple):
    """What is in a step; ``Step`` without its seconds."""

    chunks: tuple[tuple[int, int], ...] = ()
    contexts: tuple[int, ...] = ()
    """Cached tokens of each decode."""
    pictures: tuple[int, ...] = ()
    """Visual tokens each."""

    def step(self, seconds: float) -> Step:
        """It took so long."""
        return Step(
            seconds=seconds,
            chunks=self.chunks,
            num_decodes=len(self.contexts),
            context=sum(self.contexts),
            pictures=self.pictures,
        )


class Limits(NamedTuple):
    """What the configuration lets a step be."""

    chunk: int
    budget: int
    sequences: int
    positions: int
    """Of one sequence, ..."""
    room: int
    """... and of all of them: tokens of KV."""
    image_budget: int
    picture: tuple[int, int]
    """Least and most visual tokens of one."""

    @classmethod
    def of(cls, config: Config, card: ModelCard) -> "Limits":
        """Of instances of a configuration that serve a model."""
        engine, image = config.engine, card.image
        room = config.cache.kv_blocks * config.cache.block_size
        positions = min(card.max_positions, room)
        area = image.factor**2
        places = config.cache.embedding_blocks * config.cache.embedding_block_size
        most = min(image.max_pixels // area, places, 16_384)
        return cls(
            chunk=min(engine.chunk_tokens, engine.token_budget, positions - 1),
            budget=engine.token_budget,
            sequences=engine.max_sequences,
            positions=positions,
            room=room,
            image_budget=min(engine.image_budget_tokens, places),
            picture=(max(1, -(-image.min_pixels // area)), most),
        )


def shapes(limits: Limits, points: int) -> list[Shape]:
    """About ``points`` values along each axis."""
    return [*_encode(limits, points), *_prefill(limits, points), *_decode(limits, points),
            *_mixed(limits, points)]  # fmt: skip


def _encode(limits: Limits, points: int) -> Iterator[Shape]:
    low, high = limits.picture
    for tokens in spread(low, high, points):
        width, height = size_of(tokens)
        tokens = width * height // 28**2
        for count in spread(1, max(1, min(8, limits.image_budget // tokens)), 3):
            yield Shape(pictures=(tokens,) * count)


def _prefill(limits: Limits, points: int) -> Iterator[Shape]:
    for length in spread(min(8, limits.chunk), limits.chunk, points + 2):
        for prefix in (0, *spread(64, limits.positions // 2, points - 1)):
            yield Shape(chunks=((prefix, min(length, limits.positions - prefix - 1)),))
    for count in (2, 4):
        length = min(limits.chunk, limits.budget // count)
        yield Shape(chunks=((0, length),) * count)


def _decode(limits: Limits, points: int) -> Iterator[Shape]:
    for count in spread(1, limits.sequences, points + 2):
        most = min(limits.positions // 2, limits.room // count)
        for context in spread(min(16, most), most, points):
            yield Shape(contexts=(context,) * count)


def _mixed(limits: Limits, points: int) -> Iterator[Shape]:
    for count in spread(1, max(1, limits.sequences // 2), points - 1):
        for length in spread(16, max(16, min(limits.chunk, limits.budget - count)), points - 1):
            context = min(limits.positions // 8, limits.room // (2 * count))
            yield Shape(chunks=((0, length),), contexts=(context,) * count)


def spread(low: int, high: int, count: int) -> list[int]:
    """At most ``count`` whole numbers from ``low`` to ``high`` in a geometric row."""
    if high <= low or count < 2:
        return [low]
    ratio = (high / low) ** (1 / (count - 1))
    return sorted({round(low * ratio**index) for index in range(count)})


class Plans:
    """Makes plans of shapes."""

    def __init__(self, config: Config, card: ModelCard) -> None:
        self._cache = config.cache
        self._image = card.image
        self._vocab_size = min(card.vocab_size, 256)

    def language(self, shape: Shape, steps: int = 1) -> LanguagePlan:
        """A step of chunks and decodes, or a run of ``steps`` of decodes whose contexts are those
        of the shape in the mean."""
        segments: list[Segment] = []
        first = 0
        for context in shape.contexts:
            start = max(1, context - (steps - 1) // 2)
            segments.append(self._segment(len(segments), start, 1, 1, first, steps))
            first += len(segments[-1].blocks)
        for prefix, length in shape.chunks:
            end = prefix + length
            segments.append(self._segment(len(segments), prefix, length, end, first))
            first += len(segments[-1].blocks)
        return LanguagePlan(tuple(segments), steps)

    def vision(self, shape: Shape, pixels: Sequence[object]) -> VisionPlan:
        """A step of pictures, whose pixels are given."""
        tasks, first = [], 0
        for index, (tokens, each) in enumerate(zip(shape.pictures, pixels, strict=True)):
            count = -(-tokens // self._cache.embedding_block_size)
            blocks = _ring(first, count, self._cache.embedding_blocks)
            first += count
            item = Item(digest("profile", b"%d" % index), 0, tokens, self.grid(tokens))
            tasks.append(VisionTask(JobId(f"profile/{index}"), item, each, blocks))
        return VisionPlan(tuple(tasks))

    def grid(self, tokens: int) -> tuple[int, int, int]:
        """Patches of a picture of about so many visual tokens."""
        width, height = size_of(tokens)
        merge = self._image.merge_size
        return 1, height // 28 * merge, width // 28 * merge

    def pixels(self, tokens: int) -> tuple[int, int]:
        """Width and height of such a picture, resized."""
        _, rows, columns = self.grid(tokens)
        return columns * self._image.patch_size, rows * self._image.patch_size

    def _segment(
        self, index: int, start: int, length: int, prompt_len: int, first: int, steps: int = 1
    ) -> Segment:
        """Sequences share blocks where there are too few: that changes no step's time."""
        size, end = self._cache.block_size, start + length
        blocks = _ring(first, -(-(end + steps - 1) // size), self._cache.kv_blocks)
        tokens = tuple((start + n) % (self._vocab_size - 8) + 4 for n in range(length))
        draw = Draw(Sampling(), end, prompt_len)
        return Segment(JobId(f"profile/{index}"), start, tokens, blocks, (), draw)


def _ring(first: int, count: int, size: int) -> tuple[BlockId, ...]:
    return tuple(BlockId((first + index) % size) for index in range(count))
