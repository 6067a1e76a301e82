"""A KV store full of numbers, and attention over it by whatever operations."""

import random

import torch

from triptych.core.layout import CODES, SCALE_BYTES, Layout
from triptych.executor.attention.plan import Span
from triptych.executor.kernels.reference.quantise import encode
from triptych.executor.kv import KINDS, planes
from triptych.executor.operations import PLAIN
from triptych.executor.ranks import Share
from triptych.executor.rotary import doubled

BLOCK, KV_HEADS, GROUP, SIZE = 16, 2, 2, 16
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Memory:
    """A store of two ranks and two layers, full of numbers; blocks that nobody names are NaN. Of
    codes (``dtype``) it holds the same numbers, rounded."""

    def __init__(self, spans, seed=1, size=SIZE, dtype="float32"):
        torch.manual_seed(seed)
        self.size = size
        shape = (2, 2, BLOCK, KV_HEADS)
        width = size + SCALE_BYTES if dtype in CODES else size
        self.layout = Layout("kv", "m", dtype, (*shape, width), BLOCK, 2)
        self.store = torch.full((80, *shape, size), float("nan"))
        for block in {block for span in spans for block in span.blocks}:
            torch.manual_seed(seed + block)
            self.store[2 * block : 2 * block + 2] = torch.randn(2, *shape, size)
        if dtype in CODES:
            numbers, self.store = self.store, torch.zeros(80, *self.layout.shape, dtype=torch.uint8)
            codes, scales = planes(self.store, KINDS[dtype])
            made = encode(numbers, KINDS[dtype])
            codes.view(torch.uint8).copy_(made[0].view(torch.uint8))
            scales.copy_(made[1])
        self.store = self.store.to(DEVICE)

    def attend(self, made_of, spans):
        """The second layer of the second rank, and the store behind it."""
        count, half = sum(span.end - span.start for span in spans), self.size // 2
        rows = []
        for span in spans:  # what a row is does not depend on who stands beside it
            torch.manual_seed(span.end)
            width = (GROUP + 2) * KV_HEADS * self.size + half
            rows.append(torch.randn(span.end - span.start, width))
        qkv, angles = torch.cat(rows).split((width - half, half), dim=1)
        assert len(qkv) == count
        store = self.store.clone()
        plan = made_of.planner(self.layout, DEVICE, GROUP).plan(spans)
        attention = made_of.attention(store, Share(1, 2), self.layout)
        attention.begin(plan)
        rotary = angles.cos().contiguous().to(DEVICE), angles.sin().contiguous().to(DEVICE)
        rotary = doubled(*rotary) if made_of is PLAIN else rotary
        return attention.run(qkv.contiguous().to(DEVICE), rotary, 1, plan), store, plan


def spans_of(*sizes):
    """Spans (start, end) with blocks of their own."""
    free = iter(random.Random(3).sample(range(40), 40))
    return [
        Span(start, end, tuple(next(free) for _ in range(-(-end // BLOCK)))) for start, end in sizes
    ]
