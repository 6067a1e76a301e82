"""What a model's layers are computed with on a CPU: our C, float32, on a core or more if idle.

An operation is computed at once, or, while a step of decodes is recorded, noted down in a program
that is walked later without Python. Knows which operation does what; ``native/steps.c`` knows how.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.nn import functional

from triptych.core.errors import InvariantBroken
from triptych.core.layout import Layout
from triptych.executor.attention.native import NativeAttention, NativePlanner
from triptych.executor.models.vision_plan import Run
from triptych.executor.native.frames import NativeFrames
from triptych.executor.native.library import Library
from triptych.executor.native.machine import Machine
from triptych.executor.operations import Graphs, Inputs, Plain, Rotary
from triptych.executor.patches import values
from triptych.executor.ranks import Share
from triptych.inputs.model_card import ImageGeometry


class NativeMatrix:
    """``x W^T + b``, and the rows of W: laid in panels, each read from front to back."""

    def __init__(self, weight: Tensor, bias: Tensor | None, machine: Machine) -> None:
        """``weight`` is (outputs, inputs)."""
        self._machine, self._bias = machine, bias
        self._width, self._inner = weight.shape
        panel = machine.panel
        padded = functional.pad(weight, (0, 0, 0, -self._width % panel))
        panels = padded.view(-1, panel, self._inner).transpose(1, 2)
        self._panels = machine.arena.take(*panels.shape)
        self._panels.copy_(panels)

    def __call__(self, x: Tensor) -> Tensor:
        """Of (rows, inputs): (rows, outputs)."""
        if x.shape[1] != self._inner:
            raise InvariantBroken(f"a matrix of {self._inner} inputs was given {x.shape[1]}")
        out = torch.empty(x.shape[0], self._width)
        reads = (x, self._panels, self._bias)
        self._machine.do("product", x.shape[0], out, reads, width=self._width, inner=self._inner)
        return out

    def rows(self, tokens: Tensor) -> Tensor:
        """Of ``tokens`` (n,), ids in range: (n, inputs)."""
        out = torch.empty(len(tokens), self._inner)
        self._machine.do("embed", len(tokens), out, (tokens, self._panels), width=self._inner)
        return out


class Native(Plain):
    """Implements ``operations.Operations``. A sequence's numbers never depend on what else is in
    the batch, nor on how many of ``threads`` threads computed them."""

    name = "native"
    """See ``Operations``."""

    def __init__(self, library: Library, threads: int = 1) -> None:
        self._machine = Machine(library, threads)
        if threads > 1:
            library.muster(threads)  # here: a thread that executes may be nicer than others
            torch.set_num_threads(1)  # OpenMP's threads wait awake: they would fight the helpers

    def together(self) -> AbstractContextManager[None]:
        """See ``Operations``."""
        return self._machine.together()

    def matrix(self, weight: Tensor, bias: Tensor | None) -> NativeMatrix:
        """See ``Operations``."""
        return NativeMatrix(weight, bias, self._machine)

    def table(self, weight: Tensor) -> NativeMatrix:
        """See ``Operations``."""
        return NativeMatrix(weight, None, self._machine)

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See ``Operations``."""
        return self._norm(x, None, weight, eps)

    def add_norm(self, x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See ``Operations``: one pass."""
        return self._norm(x, delta, weight, eps)

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """See ``Operations``."""
        rows, width = gate_up.shape[0], gate_up.shape[1] // 2
        out = torch.empty(rows, width)
        self._machine.do("silu_mul", rows, out, (gate_up,), width=width)
        return out

    def angles(
        self, positions: Tensor, frequencies: Tensor, axes: Tensor, dtype: torch.dtype
    ) -> Rotary:
        """See ``Operations``."""
        del dtype
        rows, half = positions.shape[1], len(frequencies)
        cosines, sines = torch.empty(rows, half), torch.empty(rows, half)
        reads = (positions, frequencies, axes, sines)
        self._machine.do("angles", rows, cosines, reads, width=half, inner=rows)
        return cosines, sines

    def patches(self, image: Tensor, geometry: ImageGeometry) -> Tensor:
        """See ``Operations``."""
        size, frames = geometry.patch_size, geometry.temporal_patch_size
        down, across = image.shape[0] // size, image.shape[1] // size
        out = torch.empty(down * across, 3 * frames * size**2)
        sizes = {"width": across, "inner": frames, "heads": geometry.merge_size, "head_dim": size}
        self._machine.do("patches", len(out), out, (image, values(geometry)), **sizes)
        return out

    def plan_spans(self, runs: Sequence[Run], device: torch.device) -> Tensor:  # noqa: ARG002
        """See ``Operations``: int64 (spans, 2), the first row of each and its length."""
        spans = [(run.first + i * run.length, run.length) for run in runs for i in range(run.spans)]
        return torch.tensor(spans, dtype=torch.int64)

    def attend_spans(self, qkv: Tensor, rotary: Rotary, plan: Tensor) -> Tensor:
        """See ``Operations``."""
        rows, _, heads, size = qkv.shape
        out = torch.empty(rows, heads * size)
        sizes = {"inner": len(plan), "heads": heads, "head_dim": size}
        self._machine.do("attend_spans", rows, out, (qkv, *rotary, plan), size**-0.5, **sizes)
        return out

    def attention(self, store: Tensor, share: Share, layout: Layout) -> NativeAttention:
        """See ``Operations``."""
        return NativeAttention(store, share, layout, self._machine)

    def planner(self, layout: Layout, device: str, group: int) -> NativePlanner:  # noqa: ARG002
        """See ``Operations``."""
        return NativePlanner(layout)

    def graphs(
        self,
        compute: Callable[[Inputs], Tensor],
        clear: Callable[[Tensor], None],
        layout: Layout,
        device: str,  # noqa: ARG002
    ) -> Graphs | None:
        """See ``Operations``: recorded programs. None for ranks computed one after the other,
        whose sums are PyTorch's."""
        if layout.num_shards > 1:
            return None
        return NativeFrames(compute, clear, layout, self._machine)

    def _norm(self, x: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
        rows, width = x.shape
        if weight.shape != (width,) or (delta is not None and delta.shape != x.shape):
            raise InvariantBroken("a norm was given rows of different width")
        out = torch.empty(rows, width)
        self._machine.do("norm", rows, out, (x, weight, delta), eps, width=width)
        return out
