"""The group of kernels that memory bounds: blocks, norms, activations, rotary and draws."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from cli.gpu.groups import Case, Group, Measure
from cli.gpu.kit import Setup
from cli.gpu.rows import Found, Work
from cli.gpu.sizes import Sizes, told
from triptych.core.plan import Draw
from triptych.core.request import Sampling
from triptych.executor.kernels.reference.sampling import pack
from triptych.executor.rotary import frequencies

COPY = 0.85
"""Target: of the copy's bandwidth."""
Made = tuple[Callable[[], object], float, float | None]
"""A call, the bytes that it reads and writes, its target."""
_ASKED = {
    "greedy": Sampling(),
    "top_p": Sampling(temperature=0.8, top_p=0.95, top_k=50, seed=1),
}


def group(sizes: Sizes) -> Group:
    """Of all such kernels."""
    blocks, rows = f"{sizes.copied_blocks} blocks", f"{told(sizes.rows)} tokens"
    cases = [
        Case(f"gather {blocks}", (_gather, None), 3.0),
        Case(f"scatter {blocks}", (_scatter, None), 3.0),
        Case(f"gather {blocks}, one layer", (_gather, range(1)), 3.0),
        Case(f"scatter {blocks}, one layer", (_scatter, range(1)), 3.0),
        Case(f"norm {rows}", (_norm, False), 3.0),
        Case(f"add and norm {rows}", (_norm, True), 3.0),
        Case(f"silu_mul {rows}", (_silu_mul, None), 3.0),
        Case(f"rotate_and_write {rows}", (_rotate, None), 3.0),
    ]
    cases += [
        Case(f"sample {count}, {name}", (_sample, (count, name)), 4.0)
        for count in sizes.drawn
        for name in _ASKED
    ]
    return Group("memory", cases, moves)


@contextmanager
def moves(setup: Setup) -> Iterator[Measure]:
    """Nothing is shared: each case makes what it needs."""

    def measure(what: tuple[Callable[[Setup, Any], Made], Any]) -> Found:
        make, how = what
        call, num_bytes, target = make(setup, how)
        return Found(setup.timer(call), [Work(0.0, num_bytes)], target)

    yield measure


def _blocks(setup: Setup, layers: range | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A store of twice the blocks, which of them in no order, and a place for these."""
    sizes, text = setup.sizes, setup.sizes.spec.text
    shape = (2, sizes.block_size, text.num_kv_heads, text.head_dim)
    store = setup.normal(2 * sizes.copied_blocks, text.num_layers, *shape)
    index = torch.randperm(len(store), device=setup.device)[: sizes.copied_blocks]
    count = text.num_layers if layers is None else len(layers)
    return store, index.int(), setup.normal(sizes.copied_blocks, count, *shape)


def _gather(setup: Setup, layers: range | None) -> Made:
    store, index, staging = _blocks(setup, layers)
    gather = setup.kit.gather_blocks
    return lambda: gather(store, index, staging, layers=layers), 2.0 * staging.nbytes, COPY


def _scatter(setup: Setup, layers: range | None) -> Made:
    store, index, staging = _blocks(setup, layers)
    scatter = setup.kit.scatter_blocks
    return lambda: scatter(staging, store, index, layers=layers), 2.0 * staging.nbytes, COPY


def _norm(setup: Setup, has_residual: bool) -> Made:
    text = setup.sizes.spec.text
    x, stream = (setup.normal(setup.sizes.rows, text.hidden_size) for _ in range(2))
    weight, out, norm = setup.normal(text.hidden_size), torch.empty_like(x), setup.kit.rms_norm
    residual = stream if has_residual else None
    passes = 4 if has_residual else 2
    call = lambda: norm(x, weight, text.norm_eps, residual=residual, out=out)  # noqa: E731
    return call, float(passes * x.nbytes), None


def _silu_mul(setup: Setup, how: None) -> Made:
    del how
    gate_up = setup.normal(setup.sizes.rows, 2 * setup.sizes.spec.text.intermediate_size)
    silu_mul = setup.kit.silu_mul
    return lambda: silu_mul(gate_up), 1.5 * gate_up.nbytes, None


def _rotate(setup: Setup, how: None) -> Made:
    del how
    sizes, text = setup.sizes, setup.sizes.spec.text
    head, tokens = text.head_dim, sizes.rows
    qkv = setup.normal(tokens, (text.num_heads + 2 * text.num_kv_heads) * head)
    blocks = -(-tokens // sizes.block_size)
    store = setup.normal(blocks, text.num_layers, 2, sizes.block_size, text.num_kv_heads, head)
    places = torch.arange(tokens, device=setup.device)
    turns = places[:, None] * frequencies(text.rope_theta, head).to(setup.device)
    cosines, sines, slots = turns.cos(), turns.sin(), places.int()
    rotate = setup.kit.rotate_and_write
    keys, values = store[:, 0, 0], store[:, 0, 1]
    num_bytes = 2.0 * qkv.nbytes + cosines.nbytes + sines.nbytes + slots.nbytes
    return lambda: rotate(qkv, cosines, sines, keys, values, slots), num_bytes, None


def _sample(setup: Setup, how: tuple[int, str]) -> Made:
    count, name = how
    logits = torch.randn(count, setup.sizes.spec.text.vocab_size, device=setup.device) * 3
    draws = [Draw(_ASKED[name], row, row) for row in range(count)]
    params, sample = pack(draws, [-1] * count).to(setup.device), setup.kit.sample
    return lambda: sample(logits, params), float(logits.nbytes), None
