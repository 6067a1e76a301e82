"""A decoder with grouped-query attention and M-RoPE over paged keys and values.

Knows one step's tensors, the ranks that share a layer, and the stores that it reads and writes;
keeps nothing of a sequence.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from triptych.core.errors import ConfigError
from triptych.core.layout import Layout
from triptych.core.plan import LanguagePlan
from triptych.executor.attention.dense import PagedAttention
from triptych.executor.attention.plan import AttentionPlan, Planner
from triptych.executor.batch import Batch, Batcher
from triptych.executor.block_store import BlockStore
from triptych.executor.language import OnLayers
from triptych.executor.models.config import ModelSpec, TextSpec
from triptych.executor.models.layers import GatedMlp, Linear, RmsNorm, frequencies, rotate
from triptych.executor.models.weights import LANGUAGE, Scope, Weights
from triptych.executor.ranks import Share

LAYERS = "model.layers."
"""All that is shared among ranks has a name that begins so."""
Total = Callable[[Sequence[Tensor]], Tensor]
"""What all ranks' summands add up to; given those of the ranks computed here."""


class Sharers(Protocol):
    """The ranks that share a model's layers, as one of their processes sees them."""

    shares: tuple[Share, ...]
    """Of the ranks computed here."""

    def total(self, summands: Sequence[Tensor]) -> Tensor:
        """See ``Total``. May overwrite them."""
        ...


class Leaders(Sharers, Protocol):
    """The same, as the process sees them that begins each step."""

    def step(self, plan: LanguagePlan, x: Tensor) -> AbstractContextManager[None]:
        """Around the layers of a step whose rows are ``x``: the others compute it too."""
        ...


class HeadGroup:
    """Attention over one rank's share of the heads, whose keys and values are its own."""

    def __init__(self, scope: Scope, spec: TextSpec, index: int, memory: PagedAttention) -> None:
        size, head, share = spec.hidden_size, spec.head_dim, memory.share
        self._index = index
        self._memory = memory
        self._heads = spec.num_heads // share.num_ranks
        self._kv_heads = spec.num_kv_heads // share.num_ranks
        self._head = head
        outputs = {
            "q_proj": spec.num_heads * head,
            "k_proj": spec.num_kv_heads * head,
            "v_proj": spec.num_kv_heads * head,
        }
        self._qkv = Linear(scope, outputs, size, bias=True, share=share)
        inputs = spec.num_heads * head
        self._out = Linear(
            scope, {"o_proj": size}, inputs, bias=False, share=share, is_summand=True
        )

    def __call__(self, x: Tensor, rotary: tuple[Tensor, Tensor], plan: AttentionPlan) -> Tensor:
        """Of ``x`` (tokens, hidden) the rank's summand of the output; writes keys and values."""
        qkv = self._qkv(x).view(x.shape[0], -1, self._head)
        turned = rotate(qkv[:, : self._heads + self._kv_heads], *rotary)
        query, key = turned[:, : self._heads], turned[:, self._heads :]
        value = qkv[:, self._heads + self._kv_heads :]
        return self._out(self._memory.run(query, key, value, self._index, plan))


class Block:
    """Attention and MLP, each behind a norm and added to the stream."""

    def __init__(
        self,
        scope: Scope,
        spec: TextSpec,
        index: int,
        memories: Sequence[PagedAttention],
        total: Total,
    ) -> None:
        size, attention, mlp = spec.hidden_size, scope.at("self_attn"), scope.at("mlp")
        self._total = total
        self._attention = [HeadGroup(attention, spec, index, memory) for memory in memories]
        self._mlp = [
            GatedMlp(mlp, size, spec.intermediate_size, share=memory.share) for memory in memories
        ]
        self._norm = RmsNorm(scope.at("input_layernorm"), size, spec.norm_eps)
        self._mlp_norm = RmsNorm(scope.at("post_attention_layernorm"), size, spec.norm_eps)

    def __call__(self, x: Tensor, rotary: tuple[Tensor, Tensor], plan: AttentionPlan) -> Tensor:
        """``x`` (tokens, hidden) through the block; its keys and values go to memory."""
        inner = self._norm(x)
        x = x + self._total([heads(inner, rotary, plan) for heads in self._attention])
        inner = self._mlp_norm(x)
        return x + self._total([mlp(inner) for mlp in self._mlp])


class Layers:
    """All layers, as far as the ranks of this process compute them. Norms are whole."""

    def __init__(
        self, spec: TextSpec, weights: Weights, memory: BlockStore, ranks: Sharers
    ) -> None:
        scope = weights.part(LAYERS)
        self._memories = [PagedAttention(memory.tensor, share) for share in ranks.shares]
        self._blocks = [
            Block(scope.at(f"{LAYERS}{index}"), spec, index, self._memories, ranks.total)
            for index in range(spec.num_layers)
        ]
        self._rotary = Rotary(spec, weights.dtype, weights.device)

    def __call__(self, x: Tensor, batch: Batch, on_layers: OnLayers | None = None) -> Tensor:
        """``x`` (tokens, hidden) behind the last layer; keys and values go to memory."""
        rotary = self._rotary(batch.positions)
        for memory in self._memories:
            memory.begin(batch.attention)
        for num_layers, block in enumerate(self._blocks, 1):
            x = block(x, rotary, batch.attention)
            if on_layers is not None:
                on_layers(num_layers)
        return x


class Decoder:
    """A language model over a KV store, computed by as many ranks as its blocks have shards.

    Implements ``executor.language.LanguageModel``. Embeddings and head are whole, and only here.
    """

    def __init__(
        self,
        spec: ModelSpec,
        weights: Weights,
        memory: BlockStore,
        embeddings: BlockStore | None,
        ranks: Leaders,
    ) -> None:
        text = spec.text
        scope = weights.part(*LANGUAGE)
        body = scope.at("model")
        self.vocab_size = text.vocab_size
        self._table = body.take("embed_tokens.weight", text.vocab_size, text.hidden_size)
        self._ranks = ranks
        self._layers = Layers(text, weights, memory, ranks)
        self._norm = RmsNorm(body.at("norm"), text.hidden_size, text.norm_eps)
        self._head = self._table
        if text.is_tied:
            weights.skip("lm_head.weight")
        else:
            self._head = scope.take("lm_head.weight", text.vocab_size, text.hidden_size)
        self._rows: Tensor | None = None
        if embeddings is not None:
            self._rows = embeddings.tensor.view(-1, embeddings.layout.shape[-1])
        self._batcher = Batcher(
            Planner(memory.layout, weights.device),
            merge_size=spec.vision.merge_size,
            embedding_block_size=embeddings.layout.block_size if embeddings is not None else 0,
            device=weights.device,
        )

    def logits(self, plan: LanguagePlan, on_layers: OnLayers | None = None) -> Tensor:
        """See ``executor.language.LanguageModel``."""
        batch = self._batcher.make(plan)
        x = self._embed(batch)
        with self._ranks.step(plan, x):
            x = self._layers(x, batch, on_layers)
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


def kv_layout(
    spec: TextSpec, *, block_size: int, dtype: str, model: str, num_shards: int = 1
) -> Layout:
    """Layout of the KV blocks of a model that ``num_shards`` ranks compute. Raises ConfigError if
    its heads or inner columns cannot be divided among them."""
    for size, name in ((spec.num_kv_heads, "KV heads"), (spec.intermediate_size, "inner columns")):
        if size % num_shards:
            raise ConfigError(f"model.tensor_parallel: {num_shards} does not divide {size} {name}")
    shape = (spec.num_layers, 2, block_size, spec.num_kv_heads // num_shards, spec.head_dim)
    return Layout("kv", model, dtype, shape, block_size, num_shards)
