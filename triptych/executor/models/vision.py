"""A vision tower over pictures of native resolution, shared by the Qwen-VL families.

Patch embedding, blocks of attention with 2D rotary positions, and a merger that makes one visual
token of each square of patches (arXiv 2409.12191 and 2502.13923, section 2.1). Several pictures of
different size are one batch without padding. What the families differ in is in ``VisionSpec``.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from triptych.executor.models.config import VisionSpec
from triptych.executor.models.layers import (
    GatedMlp,
    Layer,
    LayerNorm,
    Linear,
    Norm,
    PlainMlp,
    RmsNorm,
)
from triptych.executor.models.vision_plan import Grid, plan_patches
from triptych.executor.models.weights import VISION, Scope, Weights
from triptych.executor.operations import Rotary
from triptych.executor.rotary import frequencies

_EPS = 1e-6


class Block:
    """Attention within spans and MLP, each behind a norm and added to the stream."""

    def __init__(self, scope: Scope, spec: VisionSpec) -> None:
        size = spec.hidden_size
        self._heads = spec.num_heads
        self._qkv = Linear(scope.at("attn"), {"qkv": 3 * size}, size, bias=True)
        self._out = Linear(scope.at("attn"), {"proj": size}, size, bias=True)
        self._norm = _norm(scope.at("norm1"), spec)
        self._mlp_norm = _norm(scope.at("norm2"), spec)
        self._mlp = _mlp(scope.at("mlp"), spec)
        self._operations = scope.operations

    def __call__(self, x: Tensor, delta: Tensor | None, rotary: Rotary, spans: Any) -> Tensor:
        """``x`` (patches, hidden), to which ``delta`` is to be added, through the block, in place;
        every patch sees its own span. Returns what is to be added to ``x`` behind it."""
        inner = self._norm(x) if delta is None else self._norm.add(x, delta)
        qkv = self._qkv(inner).view(x.shape[0], 3, self._heads, -1)
        delta = self._out(self._operations.attend_spans(qkv, rotary, spans))
        return self._mlp(self._mlp_norm.add(x, delta))


class VisionTower:
    """Pictures' patches in, visual tokens out."""

    def __init__(self, spec: VisionSpec, weights: Weights) -> None:
        scope = weights.part(VISION).at(VISION.rstrip("."))
        self.spec = spec
        self.operations = weights.operations
        patch = scope.take(
            "patch_embed.proj.weight",
            *(spec.hidden_size, spec.in_channels, spec.temporal_patch_size),
            *(spec.patch_size, spec.patch_size),
        ).flatten(1)
        self._patch = weights.operations.matrix(patch, None)
        self.device, self._dtype = patch.device, patch.dtype
        # Other norms and activations are PyTorch's, which reads what is before them.
        is_ours = (spec.norm, spec.mlp, spec.activation) == ("rms", "gated", "silu")
        self._together = weights.operations.together if is_ours else nullcontext
        self._blocks = [Block(scope.at(f"blocks.{index}"), spec) for index in range(spec.depth)]
        merger, square = scope.at("merger"), spec.hidden_size * spec.merge_size**2
        self._norm = _norm(merger.at("ln_q"), spec)
        self._merge = Linear(merger, {"mlp.0": square}, square, bias=True)
        self._out = Linear(merger, {"mlp.2": spec.out_size}, square, bias=True)
        head = spec.hidden_size // spec.num_heads
        self._frequencies = frequencies(spec.rope_theta, head // 2).to(weights.device)

    def __call__(self, patches: Tensor, grids: Sequence[Grid]) -> Tensor:
        """``patches`` (patches of all pictures, ``spec.patch_values``), normalised pixels in the
        processor's order; one grid (frames, rows, columns) per picture. Returns the visual tokens
        of all pictures in order, (tokens, ``spec.out_size``)."""
        spec, device = self.spec, self.device
        plan = plan_patches(grids, spec.merge_size, spec.window_patches)
        order = torch.from_numpy(plan.order).to(device)
        x = self._patch(patches.to(device, self._dtype))[order]
        rotary = self._rotary(torch.from_numpy(plan.places).to(device))
        whole, windows = (
            self.operations.plan_spans(runs, device) for runs in (plan.whole, plan.windows)
        )
        delta = None
        for index, block in enumerate(self._blocks):
            is_whole = index in spec.full_blocks or spec.window_patches == 0
            with self._together():
                delta = block(x, delta, rotary, whole if is_whole else windows)
        x = x if delta is None else x.add_(delta)
        merged = self._norm(x).view(len(plan.restore), -1)
        tokens = self._out(functional.gelu(self._merge(merged)))
        return tokens[torch.from_numpy(plan.restore).to(device)]

    def _rotary(self, places: Tensor) -> Rotary:
        """Float32 cosines and sines (patches, head_dim / 2): rows turn the first half of the
        frequencies, columns the second."""
        angles = (places[..., None].float() * self._frequencies).permute(1, 0, 2).flatten(1)
        return angles.cos(), angles.sin()


def _norm(scope: Scope, spec: VisionSpec) -> Norm:
    kind = RmsNorm if spec.norm == "rms" else LayerNorm
    return kind(scope, spec.hidden_size, _EPS)


def _mlp(scope: Scope, spec: VisionSpec) -> Layer:
    size, inner = spec.hidden_size, spec.intermediate_size
    if spec.mlp == "gated":
        return GatedMlp(scope, size, inner, activation=spec.activation, bias=True)
    return PlainMlp(scope, size, inner, spec.activation)
