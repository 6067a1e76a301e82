"""Makes queries and keys of a long video whose attention has known structure.

Knows which features a token has and which head looks for which. Does not know selectors.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from triptych.executor.attention.selectors.view import VisualSpan

TEXT_BEFORE, TEXT_BEHIND = 64, 128
ROWS, COLUMNS = 20, 28
LOCAL, GRID, MARKS, OBJECTS, NOISE = 24, 12, 1, 16, 11
"""Widths of the features; together one head's 64."""
HEADS = {
    "near and landmarks": {"local": 9.0, "marks": 8.0},
    "same place in every frame": {"grid": 11.0, "local": 5.0},
    "same object": {"objects": 11.0, "marks": 7.0},
    "some of all": {"local": 6.0, "grid": 6.0, "objects": 6.0, "marks": 6.0},
}
"""How much of a score each feature is worth where a row and a key agree in it."""


@dataclass(frozen=True)
class Context:
    """One sequence as attention sees it, with a scale of 1."""

    query: Tensor
    keys: Tensor
    values: Tensor
    spans: list[VisualSpan]


def context(frames: int, seed: int = 0) -> Context:
    """Text, ``frames`` of 20 x 28 tokens, text: four heads, two of keys.

    A token's features, each of length 1: *local*, random waves whose product falls off over some
    100 tokens; *grid*, harmonics of the frame's length, alike at one place of all frames; *marks*,
    on for the first text and one visual token of 400; *objects*, one code each for eight blobs that
    move slowly and are there for a quarter of the frames. Keys are the features, queries the same
    times the head's weights of ``HEADS``; both with normal noise that puts about 1 on every score.
    """
    dice = torch.Generator().manual_seed(seed)
    per_frame = ROWS * COLUMNS
    visual = frames * per_frame
    tokens = TEXT_BEFORE + visual + TEXT_BEHIND
    place = torch.arange(tokens)
    frequencies = torch.randn(LOCAL // 2, generator=dice) / 100
    parts = {
        "local": _waves(place[:, None] * frequencies),
        "grid": _waves((place - TEXT_BEFORE)[:, None] * _harmonics(per_frame)),
        "marks": _marks(tokens, visual, dice),
        "objects": _objects(tokens, frames, dice),
    }
    queries = []
    for weights in HEADS.values():
        pieces = [weights.get(name, 0.0) * part for name, part in parts.items()]
        queries.append(torch.cat([*pieces, torch.zeros(tokens, NOISE)], 1))
    queries_marks = sum((LOCAL, GRID))
    query = torch.stack(queries, 1)
    # Every row looks for landmarks, whatever it is itself.
    for head, weights in enumerate(HEADS.values()):
        query[:, head, queries_marks] = weights.get("marks", 0.0)
    features = torch.cat([*parts.values(), torch.zeros(tokens, NOISE)], 1)
    keys = features[:, None].repeat(1, 2, 1)
    query += torch.randn(query.shape, generator=dice) * 0.5
    keys += torch.randn(keys.shape, generator=dice) * 0.1
    query[..., -NOISE:] += torch.randn(tokens, len(HEADS), NOISE, generator=dice)
    keys[..., -NOISE:] += torch.randn(tokens, 2, NOISE, generator=dice) * 0.3
    values = torch.randn(tokens, 2, query.shape[2], generator=dice)
    span = VisualSpan(TEXT_BEFORE, TEXT_BEFORE + visual, (frames, ROWS, COLUMNS))
    return Context(query, keys, values, [span])


def _waves(angles: Tensor) -> Tensor:
    return torch.cat((angles.cos(), angles.sin()), 1) / math.sqrt(angles.shape[1])


def _harmonics(period: int) -> Tensor:
    return torch.arange(1, GRID // 2 + 1) * (2 * math.pi / period)


def _marks(tokens: int, visual: int, dice: torch.Generator) -> Tensor:
    marks = torch.zeros(tokens, 1)
    marks[:TEXT_BEFORE] = 1.0
    marks[TEXT_BEFORE : TEXT_BEFORE + visual, 0] = (
        torch.rand(visual, generator=dice) < 1 / 400
    ).float()
    return marks


def _objects(tokens: int, frames: int, dice: torch.Generator) -> Tensor:
    """Blobs of about 3 x 3 tokens on slow straight paths; elsewhere no code."""
    codes = torch.nn.functional.normalize(torch.randn(8, OBJECTS, generator=dice), dim=1)
    place = torch.rand(8, 2, generator=dice) * ROWS
    speed = torch.randn(8, 2, generator=dice) * 0.3
    begin = (torch.rand(8, generator=dice) * 0.75 * frames).long().tolist()
    table = torch.zeros(frames, ROWS, COLUMNS, OBJECTS)
    grid = torch.stack(torch.meshgrid(torch.arange(ROWS), torch.arange(COLUMNS), indexing="ij"), -1)
    for number, code in enumerate(codes):
        for frame in range(begin[number], begin[number] + frames // 4):
            middle = (place[number] + speed[number] * frame) % ROWS
            table[frame, (grid - middle).abs().amax(-1) < 1.6] = code
    behind = tokens - TEXT_BEFORE - frames * ROWS * COLUMNS
    return torch.nn.functional.pad(table.flatten(0, 2), (0, 0, TEXT_BEFORE, behind))
