"""What a model's layers are computed with on a GPU: our Triton kernels.

Knows which kernel does what; the kernels know how. Imported only where Triton is installed.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from triptych.core.errors import InvariantBroken
from triptych.core.layout import Layout
from triptych.core.plan import Draw, Drawn
from triptych.executor.attention.paged import KernelAttention, KernelPlanner
from triptych.executor.graphs import DecodeGraphs
from triptych.executor.kernels import norm, rotary, sampling, swiglu
from triptych.executor.kernels.attention_plan import plan_varlen
from triptych.executor.kernels.logprobs import MOST, top_logprobs
from triptych.executor.kernels.reference.sampling import ONE_MORE, SEEN, pack
from triptych.executor.kernels.varlen import varlen_attention
from triptych.executor.matrices import Matrix, Table
from triptych.executor.models.vision_plan import Run
from triptych.executor.operations import Attention, Graphs, Inputs, Rotary, SpanPlanner
from triptych.executor.patches import cut
from triptych.executor.ranks import Share
from triptych.executor.sampler import check_history
from triptych.inputs.model_card import ImageGeometry


class Kernels:
    """Implements ``operations.Operations``. With ``deterministic`` a sequence's numbers do not
    depend, bit for bit, on what else is in the batch."""

    name = "triton"
    """See ``Operations``."""

    def __init__(self, *, deterministic: bool) -> None:
        self._deterministic = deterministic

    def together(self) -> AbstractContextManager[None]:
        """See ``Operations``: launches do not wait for each other anyway."""
        return nullcontext()

    def matrix(self, weight: Tensor, bias: Tensor | None) -> Matrix:
        """See ``Operations``: products are the library's."""
        return Matrix(weight, bias)

    def table(self, weight: Tensor) -> Table:
        """See ``Operations``."""
        return Table(weight)

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See ``Operations``."""
        return norm.rms_norm(x, weight, eps)

    def add_norm(self, x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See ``Operations``: one pass."""
        return norm.rms_norm(delta, weight, eps, residual=x)

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """See ``Operations``."""
        return swiglu.silu_mul(gate_up)

    def angles(
        self, positions: Tensor, frequencies: Tensor, axes: Tensor, dtype: torch.dtype
    ) -> Rotary:  # fmt: skip
        """See ``Operations``: float32 whatever ``dtype``, as the kernels turn."""
        del dtype
        return rotary.mrope_angles(positions, frequencies, axes)

    def patches(self, image: Tensor, geometry: ImageGeometry) -> Tensor:
        """See ``Operations``: bytes were sent to the device, and are cut there."""
        return cut(image, geometry)

    def plan_spans(self, runs: Sequence[Run], device: torch.device) -> Any:
        """See ``Operations``."""
        lengths = [run.length for run in runs for _ in range(run.spans)]
        return plan_varlen(lengths, device=device, deterministic=self._deterministic)

    def attend_spans(self, qkv: Tensor, rotary_: Rotary, plan: Any) -> Tensor:
        """See ``Operations``."""
        rotary.rotate_(qkv, *rotary_)
        scale = float(qkv.shape[-1] ** -0.5)
        query, key, value = qkv.unbind(1)
        return varlen_attention(query, key, value, plan, scale=scale).flatten(1)

    def attention(self, store: Tensor, share: Share, layout: Layout) -> Attention:
        """See ``Operations``."""
        return KernelAttention(store, share, layout, deterministic=self._deterministic)

    def planner(self, layout: Layout, device: str, group: int) -> SpanPlanner:
        """See ``Operations``."""
        return KernelPlanner(layout, device, group, deterministic=self._deterministic)

    def graphs(
        self,
        compute: Callable[[Inputs], Tensor],
        clear: Callable[[Tensor], None],
        layout: Layout,
        device: str,
    ) -> Graphs:
        """See ``Operations``."""
        return DecodeGraphs(compute, clear, layout.block_size, device)

    def draw(self, logits: Tensor, draws: Sequence[Draw]) -> tuple[Drawn, ...]:
        """See ``Operations``: drawn where the logits are."""
        if not draws:
            return ()
        device, penalised = logits.device, [one for one in draws if one.sampling.needs_history]
        slots, history = iter(range(len(penalised))), None
        if penalised:
            history = _histories(penalised, logits.shape[1], device)
        chosen = [next(slots) if one.sampling.needs_history else -1 for one in draws]
        tokens, sound = sampling.sample(logits, pack(draws, chosen).to(device), history)
        if not all(sound.tolist()):
            raise InvariantBroken("logits are not finite")
        asked = [one.sampling.logprobs for one in draws]
        own, ids, values = _logprobs(logits, tokens, max(asked))
        rows = zip(tokens.tolist(), asked, own, ids, values, strict=True)
        return tuple(_drawn(*row) for row in rows)


def _histories(draws: Sequence[Draw], vocab: int, device: torch.device) -> Tensor:
    """int32 (draws, vocab), as ``reference.sampling.history_of`` makes each: tokens travel, the
    counts are made where they are read. Raises InvariantBroken for what the sampler refuses too: on
    a device an index out of range would end the whole process."""
    for one in draws:
        check_history(one, vocab)
    rows = torch.tensor([row for row, one in enumerate(draws) for _ in one.history])
    tokens = torch.tensor([token for one in draws for token in one.history])
    is_output = torch.tensor(
        [place >= one.prompt_len for one in draws for place in range(len(one.history))]
    )
    rows, tokens, is_output = torch.stack((rows, tokens, is_output.long())).to(device).unbind()
    counts = torch.zeros(len(draws), vocab, dtype=torch.int32, device=device)
    more = torch.where(is_output > 0, ONE_MORE, 0).int()
    counts.index_put_((rows, tokens), more, accumulate=True)
    prompt = torch.zeros_like(counts)
    prompt.index_put_((rows, tokens), torch.where(is_output > 0, 0, SEEN).int(), accumulate=True)
    return counts + prompt.clamp_(max=SEEN)


def _logprobs(
    logits: Tensor, tokens: Tensor, most: int
) -> tuple[list[float], list[list[int]], list[list[float]]]:
    """Of all rows as soon as one asks: most steps have none."""
    if most < 0:
        empty: list[list[Any]] = [[] for _ in range(len(tokens))]
        return [0.0] * len(tokens), empty, empty
    own, ids, values = top_logprobs(logits, tokens, min(most, MOST, logits.shape[1]))
    return own.tolist(), ids.tolist(), values.tolist()


def _drawn(token: int, count: int, own: float, ids: list[int], values: list[float]) -> Drawn:
    if count < 0:
        return Drawn(token)
    return Drawn(token, own, tuple(zip(ids[:count], values[:count], strict=True)))
