"""A vision tower over pictures of native resolution, shared by the Qwen-VL families.

Patch embedding, blocks of attention with 2D rotary positions, and a merger that makes one visual
token of each square of patches (arXiv 2409.12191 and 2502.13923, section 2.1). Several pictures of
different size are one batch without padding. What the families differ in is in ``VisionSpec``.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from triptych.executor.models.config import VisionSpec
from triptych.executor.models.layers import (
    GatedMlp,
    Layer,
    LayerNorm,
    Linear,
    PlainMlp,
    RmsNorm,
    frequencies,
    rotate,
)
from triptych.executor.models.vision_plan import Grid, Run, plan_patches
from triptych.executor.models.weights import VISION, Scope, Weights

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

    def __call__(self, x: Tensor, rotary: tuple[Tensor, Tensor], runs: tuple[Run, ...]) -> Tensor:
        """``x`` (patches, hidden) through the block; every patch sees its own span."""
        x = x + self._out(self._attend(self._norm(x), rotary, runs))
        return x + self._mlp(self._mlp_norm(x))

    def _attend(self, x: Tensor, rotary: tuple[Tensor, Tensor], runs: tuple[Run, ...]) -> Tensor:
        qkv = self._qkv(x).view(x.shape[0], 3, self._heads, -1)
        turned = rotate(qkv[:, :2].float(), *rotary).to(x.dtype)
        parts = []
        for first, spans, length in runs:
            rows = slice(first, first + spans * length)
            query, key, value = (
                part[rows].view(spans, length, self._heads, -1).transpose(1, 2)
                for part in (turned[:, 0], turned[:, 1], qkv[:, 2])
            )
            attended = functional.scaled_dot_product_attention(query, key, value)
            parts.append(attended.transpose(1, 2).reshape(spans * length, -1))
        return parts[0] if len(parts) == 1 else torch.cat(parts)


class VisionTower:
    """Pictures' patches in, visual tokens out."""

    def __init__(self, spec: VisionSpec, weights: Weights) -> None:
        scope = weights.part(VISION).at(VISION.rstrip("."))
        self.spec = spec
        self._patch = scope.take(
            "patch_embed.proj.weight",
            *(spec.hidden_size, spec.in_channels, spec.temporal_patch_size),
            *(spec.patch_size, spec.patch_size),
        ).flatten(1)
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
        spec, device = self.spec, self._patch.device
        plan = plan_patches(grids, spec.merge_size, spec.window_patches)
        order = torch.from_numpy(plan.order).to(device)
        x = functional.linear(patches.to(device, self._patch.dtype), self._patch)[order]
        rotary = self._rotary(torch.from_numpy(plan.places).to(device))
        for index, block in enumerate(self._blocks):
            is_whole = index in spec.full_blocks or spec.window_patches == 0
            x = block(x, rotary, plan.whole if is_whole else plan.windows)
        merged = self._norm(x).view(len(plan.restore), -1)
        tokens = self._out(functional.gelu(self._merge(merged)))
        return tokens[torch.from_numpy(plan.restore).to(device)]

    def _rotary(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Float32 cosines and sines (patches, 1, 1, head_dim / 2): rows turn the first half of the
        frequencies, columns the second."""
        angles = (places[..., None].float() * self._frequencies).permute(1, 0, 2).flatten(1)
        return angles.cos()[:, None, None], angles.sin()[:, None, None]


def _norm(scope: Scope, spec: VisionSpec) -> Layer:
    kind = RmsNorm if spec.norm == "rms" else LayerNorm
    return kind(scope, spec.hidden_size, _EPS)


def _mlp(scope: Scope, spec: VisionSpec) -> Layer:
    size, inner = spec.hidden_size, spec.intermediate_size
    if spec.mlp == "gated":
        return GatedMlp(scope, size, inner, activation=spec.activation, bias=True)
    return PlainMlp(scope, size, inner, spec.activation)
