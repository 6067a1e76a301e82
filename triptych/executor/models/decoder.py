"""A decoder with grouped-query attention and M-RoPE over paged keys and values.

Knows one step's tensors, the ranks that share a layer, and the stores that it reads and writes;
keeps nothing of a sequence.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

from triptych.core.errors import ConfigError
from triptych.core.layout import CODES, SCALE_BYTES, Layout
from triptych.core.plan import LanguagePlan
from triptych.executor.attention.sparse import Sparse
from triptych.executor.batch import Batch, Batcher
from triptych.executor.block_store import BlockStore
from triptych.executor.language import OnLayers
from triptych.executor.models.config import ModelSpec, TextSpec
from triptych.executor.models.layers import GatedMlp, Linear, RmsNorm
from triptych.executor.models.weights import LANGUAGE, Scope, Weights
from triptych.executor.operations import Attention, Inputs, Matrix, Rotary
from triptych.executor.ranks import WHOLE, Share
from triptych.executor.rotary import frequencies

LAYERS = "model.layers."
"""All that is shared among ranks has a name that begins so."""


class Sharers(Protocol):
    """The ranks that share a model's layers, as one of their processes sees them."""

    shares: tuple[Share, ...]
    """Of the ranks computed here."""

    def total(self, summands: Sequence[Tensor]) -> Tensor:
        """What all ranks' summands add up to; given those of the ranks computed here, which may be
        overwritten."""
        ...


class Leaders(Sharers, Protocol):
    """The same, as the process sees them that begins each step."""

    is_alone: bool
    """Whether nobody else has to hear of a step."""

    def step(self, plan: LanguagePlan, x: Tensor) -> AbstractContextManager[None]:
        """Around the layers of a step whose rows are ``x``: the others compute it too."""
        ...


class HeadGroup:
    """Attention over one rank's share of the heads, whose keys and values are its own."""

    def __init__(
        self, scope: Scope, spec: TextSpec, index: int, memory: Attention, share: Share
    ) -> None:
        size, head = spec.hidden_size, spec.head_dim
        self._index = index
        self._memory = memory
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

    def __call__(self, x: Tensor, rotary: Rotary, plan: Any) -> Tensor:
        """Of ``x`` (tokens, hidden) the rank's summand of the output; writes keys and values."""
        return self._out(self._memory.run(self._qkv(x), rotary, self._index, plan))


class Block:
    """Attention and MLP, each behind a norm and added to the stream."""

    def __init__(
        self,
        scope: Scope,
        spec: TextSpec,
        index: int,
        memories: Sequence[Attention],
        ranks: Sharers,
    ) -> None:
        size, attention, mlp = spec.hidden_size, scope.at("self_attn"), scope.at("mlp")
        self._total = ranks.total
        self._attention = [
            HeadGroup(attention, spec, index, memory, share)
            for memory, share in zip(memories, ranks.shares, strict=True)
        ]
        self._mlp = [
            GatedMlp(mlp, size, spec.intermediate_size, share=share) for share in ranks.shares
        ]
        self._norm = RmsNorm(scope.at("input_layernorm"), size, spec.norm_eps)
        self._mlp_norm = RmsNorm(scope.at("post_attention_layernorm"), size, spec.norm_eps)

    def __call__(self, x: Tensor, delta: Tensor | None, rotary: Rotary, plan: Any) -> Tensor:
        """``x`` (tokens, hidden), to which ``delta`` is to be added, through the block, in place;
        its keys and values go to memory. Returns what is to be added to ``x`` behind it: a norm
        comes next, and takes both in one pass."""
        inner = self._norm(x) if delta is None else self._norm.add(x, delta)
        delta = self._total([heads(inner, rotary, plan) for heads in self._attention])
        inner = self._mlp_norm.add(x, delta)
        return self._total([mlp(inner) for mlp in self._mlp])


class Layers:
    """All layers, as far as the ranks of this process compute them. Norms are whole."""

    def __init__(
        self, spec: TextSpec, weights: Weights, memory: BlockStore, ranks: Sharers
    ) -> None:
        scope, made_of = weights.part(LAYERS), weights.operations
        # Of a rank with memory of its own, all there is is its own.
        own = memory.resident.num_shards == 1
        self._memories = [
            made_of.attention(memory.tensor, WHOLE if own else share, memory.resident)
            for share in ranks.shares
        ]
        self._blocks = [
            Block(scope.at(f"{LAYERS}{index}"), spec, index, self._memories, ranks)
            for index in range(spec.num_layers)
        ]
        self._angles = Angles(spec, weights)
        # Sums over several ranks read what these have made.
        self._together = made_of.together if memory.layout.num_shards == 1 else nullcontext
        self.count = spec.num_layers

    def __call__(
        self, x: Tensor, positions: Tensor, attention: Any, on_layers: OnLayers | None = None
    ) -> tuple[Tensor, Tensor]:
        """``x`` (tokens, hidden), which is overwritten, behind the last layer, and what is to be
        added to it; keys and values go to memory. ``positions`` (3, tokens); ``attention`` is what
        its planner made."""
        rotary, delta = self._angles(positions), torch.empty(0)
        for memory in self._memories:
            memory.begin(attention)
        for num_layers, block in enumerate(self._blocks, 1):
            with self._together():
                delta = block(x, delta if num_layers > 1 else None, rotary, attention)
            if on_layers is not None:
                on_layers(num_layers)
        return x, delta

    def clear(self, blocks: Tensor) -> None:
        """Fill whole ``blocks`` (int64) with zeros, before a step that begins them."""
        for memory in self._memories:
            memory.clear(blocks)


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
        sparse: Sparse | None = None,
    ) -> None:
        text = spec.text
        scope = weights.part(*LANGUAGE)
        body = scope.at("model")
        self.vocab_size = text.vocab_size
        made_of = weights.operations
        self._table = made_of.table(
            body.take("embed_tokens.weight", text.vocab_size, text.hidden_size)
        )
        self._ranks = ranks
        self._layers = Layers(text, weights, memory, ranks)
        self._norm = RmsNorm(body.at("norm"), text.hidden_size, text.norm_eps)
        self._head: Matrix = self._table
        if text.is_tied:
            weights.skip("lm_head.weight")
        else:
            head = scope.take("lm_head.weight", text.vocab_size, text.hidden_size)
            self._head = made_of.table(head)
        self._rows: Tensor | None = None
        if embeddings is not None:
            self._rows = embeddings.tensor.view(-1, embeddings.layout.shape[-1])
        self._batcher = Batcher(
            made_of.planner(memory.resident, weights.device, text.num_heads // text.num_kv_heads),
            merge_size=spec.vision.merge_size,
            embedding_block_size=embeddings.layout.block_size if embeddings is not None else 0,
            device=weights.device,
            sparse=sparse,
        )
        self._graphs = (
            made_of.graphs(self._decode, self._layers.clear, memory.layout, weights.device)
            if ranks.is_alone
            else None
        )

    def logits(self, plan: LanguagePlan, on_layers: OnLayers | None = None) -> Tensor:
        """See ``executor.language.LanguageModel``."""
        if (logits := self._captured(plan)) is not None:
            if on_layers is not None:
                on_layers(self._layers.count)
            return logits
        batch = self._batcher.make(plan)
        x = self._embed(batch)
        with self._ranks.step(plan, x):
            whole = self._layers(x, batch.positions, batch.attention, on_layers)
        return self._behind(*(part.index_select(0, batch.drawn_rows) for part in whole))

    def _captured(self, plan: LanguagePlan) -> Tensor | None:
        """Logits of a step of decodes from a captured graph, where there is one."""
        work = self._batcher.decodes(plan) if self._graphs is not None else None
        return self._graphs.logits(work) if self._graphs is not None and work else None

    def _decode(self, inputs: Inputs) -> Tensor:
        """What a graph captures: every row is a sequence, and draws."""
        x = self._table.rows(inputs.tokens)
        return self._behind(*self._layers(x, inputs.positions, inputs.plan))

    def _behind(self, x: Tensor, delta: Tensor) -> Tensor:
        return self._head(self._norm.add(x, delta)).float()

    def _embed(self, batch: Batch) -> Tensor:
        x = self._table.rows(batch.tokens)
        if batch.splice is not None and self._rows is not None:
            x.index_copy_(0, batch.splice.rows, self._rows.index_select(0, batch.splice.sources))
        return x


class Angles:
    """By how much M-RoPE turns: each frequency with time, height or width."""

    def __init__(self, spec: TextSpec, weights: Weights) -> None:
        self._frequencies = frequencies(spec.rope_theta, spec.head_dim).to(weights.device)
        sections = torch.tensor(spec.rope_sections)
        self._axes = torch.arange(3).repeat_interleave(sections).to(weights.device)
        self._dtype = weights.dtype
        self._operations = weights.operations

    def __call__(self, positions: Tensor) -> Rotary:
        """Of ``positions`` (3, n): cosines and sines (n, head_dim / 2), the same for all layers."""
        return self._operations.angles(positions, self._frequencies, self._axes, self._dtype)


def kv_layout(
    spec: TextSpec, *, block_size: int, dtype: str, model: str, num_shards: int = 1
) -> Layout:
    """Layout of the KV blocks of a model that ``num_shards`` ranks compute, of numbers or codes of
    ``dtype``. Raises ConfigError if its heads or inner columns cannot be divided among them."""
    for size, name in ((spec.num_kv_heads, "KV heads"), (spec.intermediate_size, "inner columns")):
        if size % num_shards:
            raise ConfigError(f"model.tensor_parallel: {num_shards} does not divide {size} {name}")
    width = spec.head_dim + (SCALE_BYTES if dtype in CODES else 0)
    if dtype in CODES and spec.head_dim % SCALE_BYTES:
        raise ConfigError(
            f"cache.kv_dtype: heads of {spec.head_dim} are no multiple of {SCALE_BYTES}"
        )
    shape = (spec.num_layers, 2, block_size, spec.num_kv_heads // num_shards, width)
    return Layout("kv", model, dtype, shape, block_size, num_shards)
