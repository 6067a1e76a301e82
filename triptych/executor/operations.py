"""What a model's layers are computed with: plain PyTorch here, kernels in ``kernel_operations``.

A model asks for operations by name and knows neither device nor kernel. The plain ones run on every
device and are what the others must give, but for rounding.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from triptych.core.errors import ConfigError
from triptych.core.layout import Layout
from triptych.core.plan import Draw, Drawn
from triptych.executor import matrices
from triptych.executor.attention.dense import PagedAttention
from triptych.executor.attention.plan import Planner, Span
from triptych.executor.kernels import launch
from triptych.executor.kernels.attention_shapes import BLOCK_SIZES
from triptych.executor.models.vision_plan import Run
from triptych.executor.patches import cut
from triptych.executor.ranks import Share
from triptych.executor.rotary import doubled, rotate
from triptych.executor.sampler import draw
from triptych.inputs.model_card import ImageGeometry

if TYPE_CHECKING:
    from triptych.executor.batch import Row

Rotary = tuple[Tensor, Tensor]
"""Cosines and sines of a step's rows, (rows, head_dim / 2) each; between ``angles`` and
``Attention`` as both like it."""


class Inputs(NamedTuple):
    """What a captured step of decodes reads: int32, of padded size, and always in one place."""

    tokens: Tensor
    """(rows,)"""
    positions: Tensor
    """(3, rows)"""
    plan: Any
    """Attention's."""


class Graphs(Protocol):
    """Steps of decodes that were captured."""

    def logits(self, work: "Sequence[Row]") -> Tensor | None:
        """Logits (sequences, vocabulary), valid until the next step; None if the step is better
        computed as it is, or cannot be captured. KV is written as in any step."""
        ...


class Attention(Protocol):
    """Attention of one rank over a KV store; what a ``plan`` is, its planner knows."""

    share: Share

    def begin(self, plan: Any) -> None:
        """Once a step, before the first layer's ``run``."""
        ...

    def clear(self, blocks: Tensor) -> None:
        """Fill whole ``blocks`` (int64) of all layers with zeros."""
        ...

    def run(self, qkv: Tensor, rotary: Rotary, layer: int, plan: Any) -> Tensor:
        """Turn the queries and keys of ``qkv`` (tokens, (heads + 2 * KV heads) * head_dim), write
        the keys and values of ``layer``, attend: (tokens, heads * head_dim)."""
        ...


class SpanPlanner(Protocol):
    """The host's half of attention over paged memory."""

    def plan(self, spans: Sequence[Span]) -> Any:
        """What all layers of a step share. Spans of one token come first, in ascending order of
        ``end``, those with a selector last; raises InvariantBroken if a block table is too short.
        """
        ...


class Matrix(Protocol):
    """``x W^T + b``."""

    def __call__(self, x: Tensor) -> Tensor:
        """Of (rows, inputs): (rows, outputs)."""
        ...


class Table(Matrix, Protocol):
    """A row for each token, read by token and multiplied with."""

    def rows(self, tokens: Tensor) -> Tensor:
        """Of ``tokens`` (n,), ids in range: (n, width)."""
        ...


class Operations(Protocol):
    """All that models are made of."""

    name: str
    """What ``model.kernels`` calls them."""

    def together(self) -> AbstractContextManager[None]:
        """Around operations of this protocol whose results nobody else reads inside, and which may
        therefore be done at its end."""
        ...

    def matrix(self, weight: Tensor, bias: Tensor | None) -> Matrix:
        """Of ``weight`` (outputs, inputs), which need not be kept, and ``bias`` (outputs,)."""
        ...

    def table(self, weight: Tensor) -> Table:
        """Of ``weight`` (tokens, width), which need not be kept."""
        ...

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """RMSNorm of the rows of ``x`` (tokens, width)."""
        ...

    def add_norm(self, x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> Tensor:
        """``x += delta``, in place; RMSNorm of the sum."""
        ...

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """``silu(gate) * up`` of (tokens, 2 * inner): (tokens, inner)."""
        ...

    def angles(
        self, positions: Tensor, frequencies: Tensor, axes: Tensor, dtype: torch.dtype
    ) -> Rotary:
        """Of M-RoPE, for layers of ``dtype``: ``positions`` (3, tokens), ``axes`` (half,) names
        the one of the three that turns a pair."""
        ...

    def patches(self, image: Tensor, geometry: ImageGeometry) -> Tensor:
        """Of ``image``, uint8 (height, width, 3), whose sides are multiples of
        ``geometry.factor``, on the model's device: see ``executor.patches.cut``."""
        ...

    def plan_spans(self, runs: Sequence[Run], device: torch.device) -> Any:
        """A plan of a vision tower's spans, for ``attend_spans``."""
        ...

    def attend_spans(self, qkv: Tensor, rotary: Rotary, plan: Any) -> Tensor:
        """Turn queries and keys of ``qkv`` (patches, 3, heads, head_dim), which may be overwritten;
        every patch attends to its own span: (patches, heads * head_dim)."""
        ...

    def attention(self, store: Tensor, share: Share, layout: Layout) -> Attention:
        """Attention over a KV store."""
        ...

    def planner(self, layout: Layout, device: str, group: int) -> SpanPlanner:
        """For stores of ``layout``; ``group`` query heads share a KV head."""
        ...

    def graphs(
        self,
        compute: Callable[[Inputs], Tensor],
        clear: Callable[[Tensor], None],
        layout: Layout,
        device: str,
    ) -> Graphs | None:
        """``compute``, logits (rows, vocabulary) of rows that draw, as captured graphs; None where
        a launch costs nothing. ``clear`` is told of the blocks that a step begins."""
        ...

    def draw(self, logits: Tensor, draws: Sequence[Draw]) -> tuple[Drawn, ...]:
        """See ``executor.sampler.draw``."""
        ...


class Plain:
    """PyTorch's own. Implements ``Operations``."""

    name = "plain"
    """See ``Operations``."""

    def together(self) -> AbstractContextManager[None]:
        """See ``Operations``: each is done when it is asked for."""
        return nullcontext()

    def matrix(self, weight: Tensor, bias: Tensor | None) -> Matrix:
        """See ``Operations``."""
        return matrices.Matrix(weight, bias)

    def table(self, weight: Tensor) -> Table:
        """See ``Operations``."""
        return matrices.Table(weight)

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See ``Operations``."""
        return functional.rms_norm(x, weight.shape, weight, eps)

    def add_norm(self, x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See ``Operations``."""
        return functional.rms_norm(x.add_(delta), weight.shape, weight, eps)

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """See ``Operations``."""
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate).mul_(up)

    def angles(
        self, positions: Tensor, frequencies: Tensor, axes: Tensor, dtype: torch.dtype
    ) -> Rotary:
        """See ``Operations``: in ``dtype``, as layers multiply, and ``doubled``."""
        angles = positions.float().index_select(0, axes).t() * frequencies
        return doubled(angles.cos().to(dtype), angles.sin().to(dtype))

    def patches(self, image: Tensor, geometry: ImageGeometry) -> Tensor:
        """See ``Operations``."""
        return cut(image, geometry)

    def plan_spans(self, runs: Sequence[Run], device: torch.device) -> Any:  # noqa: ARG002
        """See ``Operations``: the runs, each of which is one batch."""
        return tuple(runs)

    def attend_spans(self, qkv: Tensor, rotary: Rotary, plan: Any) -> Tensor:
        """See ``Operations``."""
        cosines, sines = (part[:, None, None] for part in rotary)
        turned = rotate(qkv[:, :2].float(), cosines, sines).to(qkv.dtype)
        heads, parts = qkv.shape[2], []
        for first, spans, length in plan:
            rows = slice(first, first + spans * length)
            query, key, value = (
                part[rows].view(spans, length, heads, -1).transpose(1, 2)
                for part in (turned[:, 0], turned[:, 1], qkv[:, 2])
            )
            attended = functional.scaled_dot_product_attention(query, key, value)
            parts.append(attended.transpose(1, 2).reshape(spans * length, -1))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def attention(self, store: Tensor, share: Share, layout: Layout) -> Attention:
        """See ``Operations``."""
        return PagedAttention(store, share, layout.dtype)

    def planner(self, layout: Layout, device: str, group: int) -> SpanPlanner:  # noqa: ARG002
        """See ``Operations``."""
        return Planner(layout, device)

    def graphs(
        self,
        compute: Callable[[Inputs], Tensor],  # noqa: ARG002
        clear: Callable[[Tensor], None],  # noqa: ARG002
        layout: Layout,  # noqa: ARG002
        device: str,  # noqa: ARG002
    ) -> Graphs | None:
        """See ``Operations``: none."""
        return None

    def draw(self, logits: Tensor, draws: Sequence[Draw]) -> tuple[Drawn, ...]:
        """See ``Operations``."""
        return draw(logits, draws)


PLAIN = Plain()
LEAST_HEAD = 16
"""Numbers that a head must have for tensor cores."""
_log = logging.getLogger(__name__)


class Needs(NamedTuple):
    """What decides which operations can compute a model."""

    device: str
    dtype: str
    threads: int
    """Of arithmetic, on a CPU."""
    text_head: int
    """Numbers of a head of the language model, ..."""
    vision_head: int
    """... and of the tower."""
    block_size: int
    kv_dtype: str = "auto"
    """``cache.kv_dtype``."""


def operations(choice: str, needs: Needs, *, deterministic: bool) -> Operations:
    """Those of a configuration's ``model.kernels``. Raises ConfigError if they cannot run here."""
    is_cuda, why_not, level = torch.device(needs.device).type == "cuda", "", logging.INFO
    if choice == "triton" or (choice == "auto" and is_cuda):
        why_not = _no_triton(needs)
        if not why_not:
            # Here and not above: a server on a CPU has no Triton, and must not need it.
            from triptych.executor.kernel_operations import Kernels

            return Kernels(deterministic=deterministic)
    elif choice == "native" or choice == "auto":
        why_not = _no_native(needs)
        if not why_not:
            from triptych.executor.native.library import NativeUnavailable, load
            from triptych.executor.native_operations import Native

            try:
                return Native(load(), needs.threads)
            except NativeUnavailable as error:
                why_not, level = str(error), logging.WARNING
        elif needs.kv_dtype != "auto":
            level = logging.WARNING  # somebody's choice, who may not know what else it chose
    if choice not in ("auto", "plain"):
        raise ConfigError(f"model.kernels: {why_not}")
    if why_not:
        _log.log(level, "plain PyTorch computes, which may be slower: %s", why_not)
    return PLAIN


def _no_triton(needs: Needs) -> str:
    """Why its kernels cannot compute this, if so."""
    least_head = min(needs.text_head, needs.vision_head)
    if least_head < LEAST_HEAD:
        return f"none for heads of {least_head}, {LEAST_HEAD} at least"
    if needs.block_size not in BLOCK_SIZES:
        return f"none for a cache.block_size of {needs.block_size}, one of {list(BLOCK_SIZES)}"
    if not launch.runs_on(torch.device(needs.device)):
        return f"Triton's kernels do not run on {needs.device} here"
    return ""


def _no_native(needs: Needs) -> str:
    """Why our C cannot compute this, if so."""
    if torch.device(needs.device).type != "cpu":
        return f"native ones compute on a CPU, not on {needs.device}"
    if needs.dtype != "float32":
        return f"native ones compute float32, not {needs.dtype}"
    if needs.kv_dtype != "auto":
        return f"native ones keep KV in float32, not as {needs.kv_dtype} (cache.kv_dtype)"
    if needs.text_head % 16:
        return f"native ones need heads of a multiple of 16, not {needs.text_head}"
    return ""
