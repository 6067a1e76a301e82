"""A compact forward pass over the modules of Transformers' Qwen2.5-VL model.

Computes what Qwen2_5_VLForConditionalGeneration computes, for batches of equally
shaped pictures and without its per-picture loops. Does not know how batches are
made or how the weights are updated.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from packing import Batch
from torch import Tensor
from torch.nn import functional
from transformers import Qwen2_5_VLForConditionalGeneration

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
WINDOW = 4
HEAD = 32


@lru_cache(maxsize=64)
def _vision_layout(rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Rotary cosines and sines of a merged grid's patches, and its window mask."""
    merged_row = torch.arange(rows)[:, None, None, None]
    merged_column = torch.arange(columns)[None, :, None, None]
    inner = torch.arange(2)
    y = (2 * merged_row + inner[None, None, :, None]).expand(rows, columns, 2, 2).reshape(-1)
    x = (2 * merged_column + inner[None, None, None, :]).expand(rows, columns, 2, 2).reshape(-1)
    frequencies = 10000.0 ** (-torch.arange(0, HEAD // 2, 2).float() / (HEAD // 2))
    angles = torch.cat([y[:, None] * frequencies, x[:, None] * frequencies], dim=-1)
    angles = torch.cat([angles, angles], dim=-1)
    window = (y // (2 * WINDOW)) * 1000 + x // (2 * WINDOW)
    mask = None
    if rows > WINDOW or columns > WINDOW:
        mask = torch.where(window[:, None] == window[None, :], 0.0, -1e4)
    return angles.cos(), angles.sin(), mask


def _rotate(states: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    left, right = states.chunk(2, dim=-1)
    return states * cosines + torch.cat([-right, left], dim=-1) * sines


def _norm(module: torch.nn.Module, states: Tensor, epsilon: float = 1e-6) -> Tensor:
    return functional.rms_norm(states, (states.shape[-1],), module.weight, epsilon)


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Plain attention: its backward pass is far quicker on a CPU than the fused kernel's."""
    scores = (query @ key.transpose(-1, -2)) * HEAD**-0.5
    if mask is not None:
        scores = scores + mask
    return scores.softmax(dim=-1).to(value.dtype) @ value


def encode_pictures(
    model: Qwen2_5_VLForConditionalGeneration, patches: Tensor, grid: tuple[int, int]
) -> Tensor:
    """Visual tokens (pictures, tokens, hidden) of equally shaped pictures given as bytes."""
    visual = model.model.visual
    count, length, _ = patches.shape
    cosines, sines, window = _vision_layout(*grid)
    mean = torch.tensor(MEAN).repeat_interleave(196)
    std = torch.tensor(STD).repeat_interleave(196)
    pixels = (patches.float() / 255.0 - mean) / std
    kernel = visual.patch_embed.proj.weight.sum(dim=2).flatten(1)
    states = functional.linear(pixels, kernel)
    for index, block in enumerate(visual.blocks):
        whole = index in visual.fullatt_block_indexes
        normed = _norm(block.norm1, states)
        heads = block.attn.qkv(normed).view(count, length, 3, -1, HEAD).permute(2, 0, 3, 1, 4)
        query = _rotate(heads[0], cosines, sines)
        key = _rotate(heads[1], cosines, sines)
        mixed = _attend(
            query.to(heads.dtype), key.to(heads.dtype), heads[2], None if whole else window
        )
        states = states + block.attn.proj(mixed.transpose(1, 2).reshape(count, length, -1))
        states = states + block.mlp(_norm(block.norm2, states))
    merger = visual.merger
    return merger.mlp(_norm(merger.ln_q, states).view(count, length // 4, -1))


def answer_loss(model: Qwen2_5_VLForConditionalGeneration, batch: Batch) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy over the answer tokens, and which of them were right."""
    text = model.model.language_model
    states = text.embed_tokens(batch.ids)
    if batch.patches:
        pieces = []
        done = 0
        for patches, grid, slot in zip(
            batch.patches, batch.grids, batch.picture_slots, strict=True
        ):
            pieces += [states[:, done : slot.start], encode_pictures(model, patches, grid).float()]
            done = slot.stop
        states = torch.cat([*pieces, states[:, done:]], dim=1)
    cosines, sines = text.rotary_emb(states, batch.positions)
    cosines, sines = cosines[:, None], sines[:, None]
    count, length, _ = states.shape
    for layer in text.layers:
        attention = layer.self_attn
        normed = _norm(layer.input_layernorm, states)
        query = attention.q_proj(normed).view(count, length, -1, HEAD).transpose(1, 2)
        key = attention.k_proj(normed).view(count, length, -1, HEAD).transpose(1, 2)
        value = attention.v_proj(normed).view(count, length, -1, HEAD).transpose(1, 2)
        shared = attention.num_key_value_groups
        key = _rotate(key, cosines, sines).to(value.dtype).repeat_interleave(shared, dim=1)
        query = _rotate(query, cosines, sines).to(value.dtype)
        value = value.repeat_interleave(shared, dim=1)
        mixed = _attend(query, key, value, batch.mask)
        states = states + attention.o_proj(mixed.transpose(1, 2).reshape(count, length, -1))
        states = states + layer.mlp(_norm(layer.post_attention_layernorm, states))
    chosen = _norm(text.norm, states.reshape(count * length, -1)[batch.rows])
    logits = model.lm_head(chosen).float()
    return functional.cross_entropy(logits, batch.targets), logits.argmax(-1) == batch.targets
