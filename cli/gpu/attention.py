"""The group of attention alone, in one layer: dense, block-sparse, paged decode and vision spans.

Beside each stands PyTorch's own on tensors that lie as it likes them best: what it would cost to
gather pages first is not counted.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from cli.gpu import flex, work
from cli.gpu.groups import Case, Group, Measure
from cli.gpu.kit import Setup
from cli.gpu.rows import Found, Work
from cli.gpu.sizes import Picture, Sizes, told
from cli.gpu.whole import COMPUTE, DECODE
from triptych.executor.kernels.attention_plan import plan_prefill, plan_varlen
from triptych.executor.kernels.block_mask import BlockMask

SPARSE = 0.8
"""Target: of what the density leaves of the dense kernel's time."""
SDPA, FLEX = "SDPA", "FlexAttention"
_FUSED = [
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
]


class Sparse(NamedTuple):
    """A prompt, and the share of its tiles that is attended to."""

    tokens: int
    density: float


class Pages(NamedTuple):
    """Paged keys and values of one layer, and who has which block."""

    keys: Tensor
    values: Tensor
    table: Tensor


def group(sizes: Sizes) -> Group:
    """All cases."""
    cases: list[Case] = []
    for tokens in sizes.attentions:
        cases.append(Case(f"dense {told(tokens)}", tokens, 5.0))
        cases += [
            Case(f"sparse {told(tokens)} at {share:.1%}", Sparse(tokens, share), 5.0)
            for share in sizes.densities
        ]
    cases += [
        Case(f"paged decode {batch} x {told(context)}", (batch, context), 3.0)
        for batch, context in sizes.paged
    ]
    spans, side = sizes.spans, sizes.spec.vision.patch_size
    name = f"spans {spans.number} of {side * spans.columns}x{side * spans.rows}"
    return Group("attention", [*cases, Case(name, spans, 3.0)], attention)


@contextmanager
def attention(setup: Setup) -> Iterator[Measure]:
    """Sparse cases are judged by the dense one of their size, if that was measured."""
    dense: dict[int, float] = {}

    def measure(what: Any) -> Found:
        if isinstance(what, Picture):
            return _spans(setup, what)
        if isinstance(what, Sparse):
            return _sparse(setup, what, dense.get(what.tokens))
        if isinstance(what, tuple):
            return _paged(setup, *what)
        found = _dense(setup, what)
        dense[what] = found.measured.median
        return found

    yield measure


def _pages(setup: Setup, batch: int, context: int) -> Pages:
    """Blocks that sequences own in no order."""
    sizes, text = setup.sizes, setup.sizes.spec.text
    width = -(-context // sizes.block_size)
    shape = (batch * width, 2, sizes.block_size, text.num_kv_heads, text.head_dim)
    store = setup.normal(*shape)
    table = torch.randperm(batch * width, device=setup.device).int().view(batch, width)
    return Pages(store[:, 0], store[:, 1], table)


def _scale(setup: Setup) -> float:
    return float(setup.sizes.spec.text.head_dim**-0.5)


def _dense(setup: Setup, tokens: int) -> Found:
    text = setup.sizes.spec.text
    query = setup.normal(tokens, text.num_heads, text.head_dim)
    pages, out = _pages(setup, 1, tokens), torch.empty_like(query)
    group = text.num_heads // text.num_kv_heads
    plan = plan_prefill([tokens], [tokens], group=group, device=setup.device)
    prefill, scale = setup.kit.paged_prefill, _scale(setup)
    measured = setup.timer(lambda: prefill(query, *pages, plan, scale=scale, out=out))
    beside = {SDPA: _beside(setup, _sdpa(setup, tokens, text.num_heads))}
    if tokens == setup.sizes.flex_at:
        tiles = torch.ones(1, *[tokens // setup.sizes.tile] * 2, device=setup.device).tril().bool()
        beside[FLEX] = flex.measure(setup, tiles, tokens)
    phase = Work(work.attention_flops(text, work.causal_pairs(0, tokens)), _traffic(setup, tokens))
    return Found(measured, [phase], COMPUTE, beside=beside)


def _traffic(setup: Setup, tokens: int) -> float:
    """Bytes of queries, keys, values and answers."""
    text = setup.sizes.spec.text
    return 2.0 * tokens * (text.num_heads + text.num_kv_heads) * text.head_dim * setup.item


def _sdpa(setup: Setup, tokens: int, heads: int) -> Callable[[], object]:
    text = setup.sizes.spec.text
    query = setup.normal(1, heads, tokens, text.head_dim)
    key, value = (setup.normal(1, text.num_kv_heads, tokens, text.head_dim) for _ in range(2))
    return lambda: functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, enable_gqa=True
    )


def kept_tiles(heads: int, tiles: int, density: float, device: torch.device) -> Tensor:
    """bool (heads, tiles, tiles): of each row's causal tiles its own and random others, in all
    ``density`` of them."""
    number = torch.arange(tiles, device=device)
    worth = torch.rand(heads, tiles, tiles, device=device)
    worth.masked_fill_(number > number[:, None], -1.0).diagonal(dim1=1, dim2=2).fill_(2.0)
    counts = ((number + 1) * density).round().clamp_(min=1)
    kept = (number < counts[:, None]).expand(heads, -1, -1)
    order = worth.argsort(-1, descending=True)
    return torch.zeros_like(worth, dtype=torch.bool).scatter_(-1, order, kept)


def _sparse(setup: Setup, what: Sparse, dense_s: float | None) -> Found:
    sizes, text, tokens = setup.sizes, setup.sizes.spec.text, what.tokens
    query = setup.normal(tokens, text.num_heads, text.head_dim)
    pages, out = _pages(setup, 1, tokens), torch.empty_like(query)
    tiles = kept_tiles(text.num_heads, tokens // sizes.tile, what.density, setup.device)
    mask = BlockMask.of(tiles, sizes.tile, sizes.tile)
    rows, ends = (
        torch.tensor(one, dtype=torch.int32, device=setup.device) for one in ([0, tokens], [tokens])
    )
    prefill, scale = setup.kit.sparse_prefill, _scale(setup)
    measured = setup.timer(lambda: prefill(query, *pages, rows, ends, mask, scale=scale, out=out))
    own = math.prod(tiles.shape[:2])
    behind = sizes.tile * (sizes.tile - 1) / 2
    pairs = (float(tiles.sum()) * sizes.tile**2 - own * behind) / text.num_heads
    density = pairs / work.causal_pairs(0, tokens)
    beside: dict[str, float | str] = {}
    if tokens == sizes.flex_at and what.density == sizes.densities[0]:
        beside[FLEX] = flex.measure(setup, tiles, tokens)
    return Found(
        measured,
        [Work(work.attention_flops(text, pairs), _traffic(setup, tokens))],
        SPARSE if dense_s is not None else None,
        reached=density * dense_s / measured.median if dense_s is not None else None,
        beside=beside,
        note=f"density {density:.1%}" + ("" if dense_s is not None else ", no dense figure"),
    )


def _paged(setup: Setup, batch: int, context: int) -> Found:
    text = setup.sizes.spec.text
    query, pages = setup.normal(batch, text.num_heads, text.head_dim), _pages(setup, batch, context)
    ends = torch.full((batch,), context, dtype=torch.int32, device=setup.device)
    decode, scale, out = setup.kit.paged_decode, _scale(setup), torch.empty_like(query)
    measured = setup.timer(lambda: decode(query, *pages, ends, scale=scale, out=out))
    shape = (batch, text.num_kv_heads, context, text.head_dim)
    key, value = (setup.normal(*shape) for _ in range(2))
    beside = {
        SDPA: _beside(
            setup,
            lambda: functional.scaled_dot_product_attention(
                query[:, :, None], key, value, enable_gqa=True
            ),
        )
    }
    flops = work.attention_flops(text, batch * context)
    phase = Work(flops, float(key.nbytes + value.nbytes + 2 * query.nbytes))
    return Found(measured, [phase], DECODE, beside=beside)


def _spans(setup: Setup, one: Picture) -> Found:
    spec, length = setup.sizes.spec.vision, one.rows * one.columns
    head = spec.hidden_size // spec.num_heads
    qkv = setup.normal(one.number * length, 3, spec.num_heads, head)
    plan = plan_varlen([length] * one.number, device=setup.device)
    query, key, value = qkv.unbind(1)
    attend, scale, out = setup.kit.varlen_attention, float(head**-0.5), torch.empty_like(query)
    measured = setup.timer(lambda: attend(query, key, value, plan, scale=scale, out=out))
    left, middle, right = setup.normal(3, one.number, spec.num_heads, length, head).unbind()
    call = lambda: functional.scaled_dot_product_attention(left, middle, right)  # noqa: E731
    flops = 4.0 * spec.hidden_size * one.number * length**2
    phase = Work(flops, qkv.nbytes * 4 / 3)
    return Found(measured, [phase], beside={SDPA: _beside(setup, call)})


def _beside(setup: Setup, call: Callable[[], object]) -> float | str:
    """Seconds, or why it does not run here."""
    on_cuda = setup.device.type == "cuda"
    try:
        # Its fallback makes a matrix of all pairs: no comparison, and no memory for it.
        with sdpa_kernel(_FUSED) if on_cuda else nullcontext():
            return setup.timer(call).median
    except RuntimeError as error:
        return f"{type(error).__name__}: {error}".split("\n")[0][:80]
