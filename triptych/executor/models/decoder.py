"""A decoder with grouped-query attention and M-RoPE over paged keys and values.

Knows one step's tensors and the stores that it reads and writes; keeps nothing of a sequence.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from triptych.core.layout import Layout
from triptych.core.plan import LanguagePlan
from triptych.executor.attention.dense import PagedAttention
from triptych.executor.attention.plan import AttentionPlan, Planner
from triptych.executor.batch import Batch, Batcher
from triptych.executor.block_store import BlockStore
from triptych.executor.models.config import ModelSpec, TextSpec
from triptych.executor.models.layers import GatedMlp, Linear, RmsNorm, frequencies, rotate
from triptych.executor.models.weights import LANGUAGE, Scope, Weights


class Block:
    """Attention and MLP, each behind a norm and added to the stream."""

    def __init__(self, scope: Scope, spec: TextSpec, index: int) -> None:
        size, head = spec.hidden_size, spec.head_dim
        self._index = index
        self._heads, self._kv_heads, self._head = spec.num_heads, spec.num_kv_heads, head
        attention = scope.at("self_attn")
        outputs = {
            "q_proj": spec.num_heads * head,
            "k_proj": spec.num_kv_heads * head,
            "v_proj": spec.num_kv_heads * head,
        }
        self._qkv = Linear(attention, outputs, size, bias=True)
        self._out = Linear(attention, {"o_proj": size}, spec.num_heads * head, bias=False)
        self._mlp = GatedMlp(scope.at("mlp"), size, spec.intermediate_size)
        self._norm = RmsNorm(scope.at("input_layernorm"), size, spec.norm_eps)
        self._mlp_norm = RmsNorm(scope.at("post_attention_layernorm"), size, spec.norm_eps)

    def __call__(
        self, x: Tensor, rotary: tuple[Tensor, Tensor], memory: PagedAttention, plan: AttentionPlan
    ) -> Tensor:
        """``x`` (tokens, hidden) through the block; its keys and values go to ``memory``."""
        qkv = self._qkv(self._norm(x)).view(x.shape[0], -1, self._head)
        turned = rotate(qkv[:, : self._heads + self._kv_heads], *rotary)
        query, key = turned[:, : self._heads], turned[:, self._heads :]
        value = qkv[:, self._heads + self._kv_heads :]
        x = x + self._out(memory.run(query, key, value, self._index, plan))
        return x + self._mlp(self._mlp_norm(x))


class Decoder:
    """A language model over a KV store. Implements ``executor.language.LanguageModel``."""

    def __init__(
        self, spec: ModelSpec, weights: Weights, memory: BlockStore, embeddings: BlockStore | None
    ) -> None:
        text = spec.text
        scope = weights.part(*LANGUAGE)
        body = scope.at("model")
        self.vocab_size = text.vocab_size
        self._table = body.take("embed_tokens.weight", text.vocab_size, text.hidden_size)
        self._blocks = [
            Block(body.at(f"layers.{index}"), text, index) for index in range(text.num_layers)
        ]
        self._norm = RmsNorm(body.at("norm"), text.hidden_size, text.norm_eps)
        self._head = self._table
        if text.is_tied:
            weights.skip("lm_head.weight")
        else:
            self._head = scope.take("lm_head.weight", text.vocab_size, text.hidden_size)
        self._rotary = Rotary(text, weights.dtype, weights.device)
        self._attention = PagedAttention(memory.tensor)
        self._rows: Tensor | None = None
        if embeddings is not None:
            self._rows = embeddings.tensor.view(-1, embeddings.layout.shape[-1])
        self._batcher = Batcher(
            Planner(memory.layout, weights.device),
            merge_size=spec.vision.merge_size,
            embedding_block_size=embeddings.layout.block_size if embeddings is not None else 0,
            device=weights.device,
        )

    def logits(self, plan: LanguagePlan, on_layers: Callable[[int], None] | None = None) -> Tensor:
        """Write the plan's keys and values; float32 (draws, vocab_size) of its draws, in order.
        ``on_layers(n)`` is called when the first ``n`` layers are written."""
        batch = self._batcher.make(plan)
        x = self._embed(batch)
        rotary = self._rotary(batch.positions)
        self._attention.begin(batch.attention)
        for count, block in enumerate(self._blocks, 1):
            x = block(x, rotary, self._attention, batch.attention)
            if on_layers is not None:
                on_layers(count)
        x = self._norm(x.index_select(0, batch.drawn_rows))
        return functional.linear(x, self._head).float()

    def _embed(self, batch: Batch) -> Tensor:
        x = functional.embedding(batch.tokens, self._table)
        if batch.splice is not None and self._rows is not None:
            x.index_copy_(0, batch.splice.rows, self._rows.index_select(0, batch.splice.sources))
        return x


class Rotary:
    """Cosines and sines of M-RoPE: each frequency turns with time, height or width."""

    def __init__(self, spec: TextSpec, dtype: torch.dtype, device: str) -> None:
        self._frequencies = frequencies(spec.rope_theta, spec.head_dim).to(device)
        sections = torch.tensor(spec.rope_sections)
        self._axes = torch.arange(3).repeat_interleave(sections).to(device)
        self._dtype = dtype

    def __call__(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Of ``positions`` (3, n): two tensors (n, 1, head_dim / 2), the same for every layer."""
        angles = positions.float().index_select(0, self._axes).t() * self._frequencies
        return (
            angles.cos().to(self._dtype).unsqueeze(1),
            angles.sin().to(self._dtype).unsqueeze(1),
        )


def kv_layout(spec: TextSpec, *, block_size: int, dtype: str, model: str) -> Layout:
    """Layout of the KV blocks of a model."""
    shape = (spec.num_layers, 2, block_size, spec.num_kv_heads, spec.head_dim)
    return Layout("kv", model, dtype, shape, block_size)
