"""Decode steps as recorded programs: one call for all layers of all sequences.

A step's numbers are written where the program reads them. Knows frames; what is computed in one is
its caller's.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from triptych.core.layout import Layout
from triptych.executor.attention.native import NativePlan, Places, table
from triptych.executor.attention.plan import fresh
from triptych.executor.batch import Row
from triptych.executor.identity import ByIdentity
from triptych.executor.native.machine import Machine
from triptych.executor.operations import Inputs

_LEAST_ROWS = 8
"""Of the first frame; each larger one has room for twice as many."""


class _Frame:
    """Memory for ``rows`` sequences, and the program over it."""

    def __init__(self, rows: int, compute: Callable[[Inputs], Tensor], machine: Machine) -> None:
        lines = torch.zeros(7, rows, dtype=torch.int64)
        self.lines = lines.numpy()
        """Tokens, three positions, places, addresses of tables, ends."""
        plan = NativePlan(lines[4], lines[5], lines[6], sparse=(), fresh=None, held=())
        with machine.recording() as self.program:
            self.logits = compute(Inputs(lines[0], lines[1:4], plan))


class NativeFrames:
    """Frames of one model, recorded when first needed. Implements ``operations.Graphs``."""

    def __init__(
        self,
        compute: Callable[[Inputs], Tensor],
        clear: Callable[[Tensor], None],
        layout: Layout,
        machine: Machine,
    ) -> None:
        """``compute`` gives logits (rows, vocabulary) of a frame's inputs, and does nothing that
        ``machine`` does not; ``clear`` fills blocks (int64) with zeros: those that a step begins.
        """
        self._compute = compute
        self._clear = clear
        self._places = Places(layout)
        self._machine = machine
        self._table_of = ByIdentity(table)
        self._frame: _Frame | None = None
        self._room = 0

    def logits(self, work: Sequence[Row]) -> Tensor | None:
        """See ``Graphs``."""
        count = len(work)
        if count == 0:
            return None
        if self._frame is None or count > self._room:
            room = max(_LEAST_ROWS, 1 << (count - 1).bit_length())
            self._frame = _Frame(room, self._compute, self._machine)
            self._room = room
        if begun := fresh([one.span for one in work], self._places.block_size):
            self._clear(torch.tensor(begun))
        tables = [self._table_of(one.span.blocks) for one in work]  # held until the step is over
        size, place_of = self._places.block_size, self._places.of
        self._frame.lines[:, :count] = [
            [one.token for one in work],
            *([one.position for one in work],) * 3,
            [place_of(one.span.blocks[one.span.start // size], one.span.start) for one in work],
            [each.address for each in tables],
            [one.span.end for one in work],
        ]
        self._frame.program.run(count)
        return self._frame.logits[:count]
