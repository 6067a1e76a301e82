"""Decode steps as captured graphs: one launch for all layers, at a few sizes of batch and context.

A step's numbers go to the device in one copy out of pinned memory and are padded to a size that was
captured: rows nobody owns write nowhere and see nothing. Knows frames and when they fit; what is
computed in one is its caller's. Without CUDA the same frames are computed eagerly, for tests.
"""

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from triptych.executor.attention.paged import KernelPlan
from triptych.executor.attention.plan import numbers
from triptych.executor.batch import Row
from triptych.executor.identity import ByIdentity
from triptych.executor.operations import Inputs

SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256)
"""Rows of a frame; a larger step is not captured. Few: each holds a workspace and logits."""
LEAST_BLOCKS = 8
"""Of the table of the smallest frame; wider ones double."""
MOST_FRAMES = 48
"""Kept; the one not used for longest goes first."""
MUCH_SHARED = 65_536
"""Tokens whose reads a step would save by reading shared beginnings once, from which on it is not
captured: of a 7B model some 4 GB, a millisecond. Reasoned, not measured."""
_WARM_RUNS = 2
"""Kernels are compiled and workspaces allocated before a stream is captured."""

Numbers = ByIdentity[NDArray[np.int32]]
"""A block table as an array."""


class _Frame:
    """Static memory for ``rows`` sequences of at most ``blocks`` blocks."""

    def __init__(self, rows: int, blocks: int, device: torch.device) -> None:
        is_pinned = device.type == "cuda"
        size = rows * (6 + blocks)
        self.host = torch.zeros(size, dtype=torch.int32, pin_memory=is_pinned)
        self.device = torch.zeros(size, dtype=torch.int32, device=device)
        self.inputs = _views(self.device, rows, blocks)
        self._numbers: NDArray[np.int32] = self.host.numpy()
        self._rows, self._blocks = rows, blocks
        self.replay: Callable[[], None] = lambda: None
        self.logits = torch.empty(0)

    def fill(self, work: Sequence[Row], block_size: int, numbers_of: Numbers) -> None:
        """Bring a step's numbers to the device."""
        rows, count = self._rows, len(work)
        self._numbers[: 6 * rows] = 0
        lines = self._numbers[: 6 * rows].reshape(6, rows)
        lines[4] = -1  # slots: who owns no row writes nowhere
        lines[0, :count] = [one.token for one in work]
        lines[1:4, :count] = [one.position for one in work]
        table = self._numbers[6 * rows :].reshape(rows, self._blocks)
        for index, (_, _, span) in enumerate(work):
            used = -(-span.end // block_size)
            lines[4, index] = span.blocks[used - 1] * block_size + (span.end - 1) % block_size
            lines[5, index] = span.end
            table[index, :used] = numbers_of(span.blocks)[:used]
        self.device.copy_(self.host, non_blocking=True)


class DecodeGraphs:
    """Frames of one model, captured when first needed."""

    def __init__(self, compute: Callable[[Inputs], Tensor], block_size: int, device: str) -> None:
        """``compute`` gives logits (rows, vocabulary) of a frame's inputs; it must not wait for
        the device, nor read anything that moves between steps."""
        self._compute = compute
        self._block_size = block_size
        self._device = torch.device(device)
        self._numbers_of = ByIdentity(numbers)
        self._frames: OrderedDict[tuple[int, int], _Frame] = OrderedDict()
        self._pool = None
        if self._device.type == "cuda":
            self._pool = torch.cuda.graph_pool_handle()

    def logits(self, work: Sequence[Row]) -> Tensor | None:
        """Logits (sequences, vocabulary), valid until the next step; None if there are too many
        rows, or if too much is shared that a frame reads again and again. KV is written as in any
        step."""
        if not 0 < len(work) <= SIZES[-1] or self._shared(work) >= MUCH_SHARED:
            return None
        rows = SIZES[bisect_left(SIZES, len(work))]
        longest = max(-(-one.span.end // self._block_size) for one in work)
        blocks = LEAST_BLOCKS << max(0, -(-longest // LEAST_BLOCKS) - 1).bit_length()
        frame = self._frames.get((rows, blocks))
        if frame is None:
            frame = self._made(rows, blocks)
        self._frames.move_to_end((rows, blocks))
        # The last step's copy has been read: its tokens were waited for.
        frame.fill(work, self._block_size, self._numbers_of)
        frame.replay()
        return frame.logits[: len(work)]

    def _shared(self, work: Sequence[Row]) -> int:
        """Tokens that would not be read again if those with the same beginning read it once; at
        least, for one beginning by first block. Looks at tables only where it can be much."""
        groups: dict[int, list[NDArray[np.int32]]] = {}
        for one in work:
            table = self._numbers_of(one.span.blocks)
            groups.setdefault(one.span.blocks[0], []).append(
                table[: one.span.end // self._block_size]
            )
        total = 0
        for tables in groups.values():
            first, others = tables[0], tables[1:]
            alike = min(map(len, tables))
            if len(others) * alike * self._block_size < MUCH_SHARED:
                continue
            for table in others:
                differ = np.flatnonzero(first[:alike] != table[:alike])
                alike = int(differ[0]) if len(differ) else alike
            total += len(others) * alike * self._block_size
        return total

    def _made(self, rows: int, blocks: int) -> _Frame:
        """A frame, captured while nobody owns a row of it."""
        while len(self._frames) >= MOST_FRAMES:
            self._frames.popitem(last=False)
        frame = _Frame(rows, blocks, self._device)
        frame.fill((), self._block_size, self._numbers_of)
        if self._device.type == "cuda":
            self._capture(frame)
        else:

            def replay() -> None:
                frame.logits = self._compute(frame.inputs)

            frame.replay = replay
        self._frames[rows, blocks] = frame
        return frame

    def _capture(self, frame: _Frame) -> None:
        """See CUDA's stream capture: warm on a stream of its own, then recorded."""
        side: Any = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):
            for _ in range(_WARM_RUNS):
                self._compute(frame.inputs)
        torch.cuda.current_stream(self._device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            frame.logits = self._compute(frame.inputs)
        frame.replay = graph.replay


def _views(numbers: Tensor, rows: int, blocks: int) -> Inputs:
    lines = numbers[: 6 * rows].view(6, rows)
    plan = KernelPlan(
        slots=lines[4],
        num_decodes=rows,
        table=numbers[6 * rows :].view(rows, blocks),
        ends=lines[5],
        cascade=None,
        prefill=None,
    )
    return Inputs(lines[0], lines[1:4], plan)
