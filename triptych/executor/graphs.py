"""Decode steps as captured graphs: one launch for all layers, at a few sizes of batch and context.

A step's numbers go to the device in one copy out of pinned memory and are padded to a size that was
captured: rows nobody owns write nowhere and see nothing. Knows frames and when they fit; what is
computed in one is its caller's. Without CUDA the same frames are computed eagerly, for tests.
"""

import logging
import threading
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from triptych.executor.attention.paged import KernelPlan
from triptych.executor.attention.plan import fresh, numbers
from triptych.executor.batch import Row
from triptych.executor.identity import ByIdentity
from triptych.executor.operations import Inputs

SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256)
"""Rows of a frame; a larger step is not captured. Few: each holds a workspace and logits."""
LEAST_BLOCKS = 8
"""Of the table of the smallest frame; wider ones double."""
MOST_FRAMES = 48
"""Kept; the one not used for longest goes first."""
MUCH_SHARED = 1 << 20
"""Tokens whose reads a step would save by reading shared beginnings once, from which on it is not
captured: of a 7B model some 60 GB, 15 ms, where its launches one by one take about 10. Reasoned,
not measured."""
_CAPTURING = threading.Lock()
_log = logging.getLogger(__name__)
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

    def __init__(
        self,
        compute: Callable[[Inputs], Tensor],
        clear: Callable[[Tensor], None],
        block_size: int,
        device: str,
    ) -> None:
        """``compute`` gives logits (rows, vocabulary) of a frame's inputs; it must not wait for
        the device, nor read anything that moves between steps. ``clear`` fills blocks (int64)
        with zeros: those that a step begins."""
        self._compute = compute
        self._clear = clear
        self._block_size = block_size
        self._device = torch.device(device)
        self._numbers_of = ByIdentity(numbers)
        self._frames: OrderedDict[tuple[int, int], _Frame] = OrderedDict()
        self._refused: set[tuple[int, int]] = set()
        self._pool: Any = None
        self._side: Any = None
        if self._device.type == "cuda":
            self._pool = torch.cuda.graph_pool_handle()
            self._side = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]

    def logits(self, work: Sequence[Row]) -> Tensor | None:
        """See ``operations.Graphs``: None if there are too many rows, if too much is shared that a
        frame reads again and again, or if the frame could not be captured."""
        if not 0 < len(work) <= SIZES[-1] or self._shared(work) >= MUCH_SHARED:
            return None
        rows = SIZES[bisect_left(SIZES, len(work))]
        longest = max(-(-one.span.end // self._block_size) for one in work)
        blocks = LEAST_BLOCKS << max(0, -(-longest // LEAST_BLOCKS) - 1).bit_length()
        frame = self._frames.get((rows, blocks)) or self._made(rows, blocks)
        if frame is None:
            return None
        self._frames.move_to_end((rows, blocks))
        if begun := fresh([one.span for one in work], self._block_size):
            self._clear(torch.tensor(begun).to(self._device))
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

    def _made(self, rows: int, blocks: int) -> _Frame | None:
        """A frame, captured while nobody owns a row of it; None if it cannot be."""
        if (rows, blocks) in self._refused:
            return None
        while len(self._frames) >= MOST_FRAMES:
            self._frames.popitem(last=False)
        frame = _Frame(rows, blocks, self._device)
        frame.fill((), self._block_size, self._numbers_of)
        if self._device.type == "cuda":
            if not self._is_captured(frame):
                self._refused.add((rows, blocks))
                return None
        else:

            def replay() -> None:
                frame.logits = self._compute(frame.inputs)

            frame.replay = replay
        self._frames[rows, blocks] = frame
        return frame

    def _is_captured(self, frame: _Frame) -> bool:
        """Warm on a stream of its own, then recorded. What other threads allocate meanwhile does
        not end it; another capture would, so there is one at a time in a process."""
        here = torch.cuda.current_stream(self._device)
        graph = torch.cuda.CUDAGraph()
        try:
            with _CAPTURING:
                self._side.wait_stream(here)
                with torch.cuda.stream(self._side):
                    for _ in range(_WARM_RUNS):
                        self._compute(frame.inputs)
                here.wait_stream(self._side)
                with torch.cuda.graph(
                    graph, self._pool, stream=self._side, capture_error_mode="thread_local"
                ):
                    frame.logits = self._compute(frame.inputs)
        except RuntimeError:
            # A capture that breaks leaves the thread on its stream, where no copy waits for it.
            torch.cuda.set_stream(here)
            _log.warning(
                "a step of %d rows cannot be captured", len(frame.inputs.tokens), exc_info=True
            )
            return False
        frame.replay = graph.replay
        return True


def _views(numbers: Tensor, rows: int, blocks: int) -> Inputs:
    lines = numbers[: 6 * rows].view(6, rows)
    plan = KernelPlan(
        slots=lines[4],
        num_decodes=rows,
        table=numbers[6 * rows :].view(rows, blocks),
        ends=lines[5],
        cascade=None,
        num_dense=rows,
        prefill=None,
        sparse=None,
        fresh=None,
    )
    return Inputs(lines[0], lines[1:4], plan)
