"""Both halves of a model with random weights made on the device, and the plans that drive them.

Knows the interfaces of weights, stores and plans; reads no file.
"""

import math
import random

import torch
from torch import Tensor

from triptych.core.ids import BlockId, JobId
from triptych.core.layout import Layout
from triptych.core.plan import Draw, LanguagePlan, Segment
from triptych.core.request import Sampling
from triptych.executor.block_store import BlockStore
from triptych.executor.models.config import ModelSpec
from triptych.executor.models.decoder import Decoder, kv_layout
from triptych.executor.models.weights import Scope, Weights
from triptych.executor.operations import Operations
from triptych.executor.ranks import Ranks, Share

_BIAS = 0.02


class DummyWeights(Weights):
    """Random tensors of any name and shape, scaled so that a layer keeps the size of numbers."""

    def __init__(self, dtype: torch.dtype, device: torch.device, operations: Operations) -> None:
        # Not the parent's, which opens a folder.
        self.dtype = dtype
        self.device = str(device)
        self.operations = operations
        self.num_bytes = 0

    def part(self, *prefixes: str) -> Scope:
        """See ``Weights``: nothing is left over."""
        del prefixes
        return Scope(self._made, "", self.operations)

    def skip(self, name: str) -> None:
        """See ``Weights``: nothing is there."""

    def _made(self, name: str, shape: tuple[int, ...], share: Share, dim: int) -> Tensor:
        part = share.of(shape[dim])
        held = (*shape[:dim], part.stop - part.start, *shape[dim + 1 :])
        made = torch.empty(held, dtype=self.dtype, device=self.device)
        self.num_bytes += made.nbytes
        if len(shape) == 1:
            return made.normal_(0.0, _BIAS) if name.endswith("bias") else made.fill_(1.0)
        return made.normal_(0.0, math.prod(shape[1:]) ** -0.5)


class DeviceBlocks(BlockStore):
    """Blocks of random numbers, without the pinned copy on the host that transfers need."""

    def __init__(self, layout: Layout, num_blocks: int, dtype: torch.dtype, device: str) -> None:
        # Not the parent's, which makes that copy.
        self.layout = self.resident = layout
        self.num_blocks = num_blocks
        self.num_bytes = num_blocks * layout.block_bytes
        self.fd = -1
        self.view = memoryview(b"")
        self.tensor = torch.empty((num_blocks, *layout.shape), dtype=dtype, device=device)
        for run in torch.split(
            self.tensor, 4096
        ):  # a large store has more numbers than one fill counts
            run.normal_()


class Language:
    """A decoder over a store of ``num_blocks`` blocks, which sequences get in no order."""

    def __init__(
        self, spec: ModelSpec, weights: DummyWeights, *, block_size: int, num_blocks: int
    ) -> None:
        dtype = str(weights.dtype).removeprefix("torch.")
        layout = kv_layout(spec.text, block_size=block_size, dtype=dtype, model="dummy")
        self.store = DeviceBlocks(layout, num_blocks, weights.dtype, weights.device)
        self.decoder = Decoder(spec, weights, self.store, None, Ranks(1))
        self._random = random.Random(0)
        self._vocab = spec.text.vocab_size
        self._free = [BlockId(index) for index in range(num_blocks)]
        self._random.shuffle(self._free)

    def decodes(self, batch: int, context: int) -> LanguagePlan:
        """A token of each sequence, the last of its ``context``."""
        size = self.store.layout.num_blocks(context)
        return LanguagePlan(
            tuple(
                self._segment(index, context - 1, 1, tuple(self._free[index * size :][:size]))
                for index in range(batch)
            )
        )

    def chunks(self, tokens: int, chunk: int) -> list[LanguagePlan]:
        """A prompt of one sequence; the last step draws."""
        blocks = tuple(self._free[: self.store.layout.num_blocks(tokens)])
        return [
            LanguagePlan((self._segment(0, start, min(chunk, tokens - start), blocks, tokens),))
            for start in range(0, tokens, chunk)
        ]

    def _segment(
        self, index: int, start: int, count: int, blocks: tuple[BlockId, ...], end: int = 0
    ) -> Segment:
        is_last = start + count >= end
        return Segment(
            JobId(f"gpu/{index}"),
            start,
            tuple(self._random.randrange(self._vocab) for _ in range(count)),
            blocks,
            draw=Draw(Sampling(), start + count, start + count) if is_last else None,
        )
