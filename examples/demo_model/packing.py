"""Packs drawn scenes and their questions into equally shaped training batches.

Knows the prompt layout, patch order, M-RoPE positions and the mask that lets
several questions share one picture without seeing each other. Does not know
the model or the optimiser.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from model_files import SYSTEM_PROMPT
from PIL import Image
from questions import EVEN_COUNTS, Example, Size, ask, draw_pictures
from tokenizers import Tokenizer

PATCH = 14
MERGED = 28
MIN_PIXELS = 112 * 112
MAX_PIXELS = 448 * 448
SYSTEM_VARIANTS: tuple[str, ...] = (
    "You are a helpful assistant.",
    "You are a helpful assistant. Answer briefly.",
    "Answer in one word.",
    "You answer questions about pictures.",
    "Be brief.",
)


def model_size(size: Size) -> Size:
    """The (width, height) that the image processor resizes a picture to."""
    width, height = (round(side / MERGED) * MERGED for side in size)
    if not MIN_PIXELS <= width * height <= MAX_PIXELS:
        raise ValueError(f"{size} is outside the demo's picture sizes")
    return width, height


def to_patches(image: Image.Image) -> np.ndarray:
    """Cut a picture into patches in the processor's order, one temporal copy, as bytes."""
    target = model_size(image.size)
    if target != image.size:
        image = image.resize(target, Image.Resampling.BICUBIC)
    width, height = target
    pixels = np.asarray(image).transpose(2, 0, 1)
    blocks = pixels.reshape(3, height // MERGED, 2, PATCH, width // MERGED, 2, PATCH)
    return blocks.transpose(1, 4, 2, 5, 0, 3, 6).reshape(-1, 3 * PATCH * PATCH)


@dataclass(frozen=True)
class Recipe:
    """How many scenes and questions a batch holds, and what they favour."""

    scenes: int
    asked: int
    counts: tuple[float, ...] = EVEN_COUNTS
    digits: tuple[int, ...] = (1,)
    favoured: tuple[str, ...] = ()
    follow_ups: float = 0.0


@dataclass
class Batch:
    """Scenes of one family and one set of picture sizes, ready for the model."""

    family: str
    grids: list[tuple[int, int]]
    patches: list[torch.Tensor]
    ids: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor
    rows: torch.Tensor
    targets: torch.Tensor
    asked_by: torch.Tensor
    kinds: list[str]
    picture_slots: list[slice] = field(default_factory=list)


@dataclass
class Questions:
    """The questions of one scene: tokens, their positions and segments, and the answers.

    ``answers`` are the indices of the token before each answer token, ``numbers`` say of which
    question.
    """

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    segments: list[int] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)


class Packer:
    """Draws and packs batches with one tokenizer; texts are tokenised once each."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, list[int]] = {}
        self._image = tokenizer.token_to_id("<|image_pad|>")
        self._pad = tokenizer.token_to_id("<|endoftext|>")

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, remembered."""
        if text not in self._known:
            self._known[text] = self._tokenizer.encode(text).ids
        return self._known[text]

    def _prefix(
        self, rng: random.Random, grids: Sequence[tuple[int, int]]
    ) -> tuple[list[int], list[tuple[int, int, int]], list[slice], int]:
        """The tokens before the question, their positions, the picture slots, the next position."""
        system = SYSTEM_PROMPT if rng.random() < 0.85 else rng.choice(SYSTEM_VARIANTS)
        start = f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n"
        ids = list(self.encode(start))
        places = [(p, p, p) for p in range(len(ids))]
        slots = []
        position = len(ids)
        for rows, columns in grids:
            ids += self.encode("<|vision_start|>")
            places.append((position,) * 3)
            position += 1
            slots.append(slice(len(ids), len(ids) + rows * columns))
            ids += [self._image] * (rows * columns)
            places += [
                (position, position + row, position + column)
                for row in range(rows)
                for column in range(columns)
            ]
            position += max(rows, columns)
            ids += self.encode("<|vision_end|>")
            places.append((position,) * 3)
            position += 1
        return ids, places, slots, position

    def pack(
        self, family: str, sizes: tuple[Size, ...], rng: random.Random, recipe: Recipe
    ) -> Batch:
        """Draw the recipe's scenes with their questions and pack them."""
        scenes = recipe.scenes
        grids = [(h // MERGED, w // MERGED) for w, h in map(model_size, sizes)]
        grids = [] if family == "chat" else grids[: 2 if family == "pair" else 1]
        prefix, prefix_places, slots, start = self._prefix(rng, grids)
        drawn: list[list[np.ndarray]] = [[] for _ in grids]
        packed: list[Questions] = []
        asked_kinds: list[list[str]] = []
        for _ in range(scenes):
            pictures = draw_pictures(family, rng, sizes, recipe.counts, recipe.digits)
            for slot, picture in enumerate(pictures):
                drawn[slot].append(to_patches(picture.draw()))
            examples = ask(family, pictures, rng, recipe.asked, recipe.favoured)
            packed.append(self._questions(examples, start, rng, recipe.follow_ups))
            asked_kinds.append([example.kind for example in examples])
        length = len(prefix) + max(len(laid.tokens) for laid in packed)
        length += -length % 16
        ids = np.full((scenes, length), self._pad, dtype=np.int64)
        places = np.zeros((3, scenes, length), dtype=np.int64)
        owner = np.full((scenes, length), -1, dtype=np.int64)
        chosen: list[tuple[int, int]] = []
        targets: list[int] = []
        asked_by: list[int] = []
        kinds: list[str] = []
        first = len(prefix)
        for row, laid in enumerate(packed):
            end = first + len(laid.tokens)
            ids[row, :first], ids[row, first:end] = prefix, laid.tokens
            places[:, row, :first] = np.array(prefix_places).T
            places[:, row, first:end] = laid.positions
            owner[row, :first], owner[row, first:end] = 0, laid.segments
            chosen += [(row, first + at) for at in laid.answers]
            targets += [laid.tokens[at + 1] for at in laid.answers]
            asked_by += [len(kinds) + number for number in laid.numbers]
            kinds += asked_kinds[row]
        causal = np.tril(np.ones((length, length), dtype=bool))
        shared = (owner[:, :, None] == owner[:, None, :]) | (owner[:, None, :] == 0)
        mask = torch.from_numpy(np.where(shared & causal, 0.0, -1e4).astype(np.float32))[:, None]
        flat = [row * length + column for row, column in chosen]
        return Batch(
            family,
            grids,
            [torch.from_numpy(np.stack(column)) for column in drawn],
            torch.from_numpy(ids),
            torch.from_numpy(places),
            mask,
            torch.tensor(flat),
            torch.tensor(targets),
            torch.tensor(asked_by),
            kinds,
            slots,
        )

    def _questions(
        self, examples: list[Example], start: int, rng: random.Random, follow_ups: float
    ) -> Questions:
        """Lay out the questions; one that follows up sees the turns before it."""
        laid = Questions()
        segment = 0
        position = start
        for number, example in enumerate(examples):
            if number and follow_ups and rng.random() < follow_ups:
                opening = "\n<|im_start|>user\n"
            else:
                opening = ""
                segment += 1
                position = start
            words = f"{opening}{example.question}<|im_end|>\n<|im_start|>assistant\n"
            question = self.encode(words)
            answer = self.encode(example.answer + "<|im_end|>")
            at = len(laid.tokens) + len(question) - 1
            laid.answers += range(at, at + len(answer))
            laid.numbers += [number] * len(answer)
            both = question + answer
            laid.tokens += both
            laid.positions += range(position, position + len(both))
            laid.segments += [segment] * len(both)
            position += len(both)
        return laid
