"""Draws tokens on the device, as ``executor.sampler`` specifies, without a word with the host.

Sorting a vocabulary is avoided: what a row needs of its sorted order is where a count or a mass is
reached, and that is found by bisection over the bits of a logit. First, programs over chunks of
the vocabulary find the best logit, then what lies within some distances of it; the tokens within
the least sufficient distance are gathered, and one program a row bisects over those. In float64,
in fixed chunks and tiles: a row's token depends on no other row. Knows rows, not requests.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from triptych.executor.kernels.arguments import FLOATS, is_dense, require
from triptych.executor.kernels.bisection import drawn, head_of, peak_of
from triptych.executor.kernels.ordered_logits import (
    COLUMNS,
    MIN_P,
    TEMPERATURE,
    depth_of,
    load_logits,
    load_shaped,
)
from triptych.executor.kernels.quantise import UNFUSED

CHUNK = 4096
CAPACITY = 32768
"""Tokens that are gathered, at most: a row that needs more bisects over its whole vocabulary."""
TILE = 2048
HEADS = tl.constexpr(4)
"""Distances that are tried: 3, 6, 12 and 24 temperatures below the best logit."""
FIELDS = tl.constexpr(12)
"""Sums of a chunk: counts of tokens within each distance, of all with a weight and of those that
``min_p`` leaves; then the same six of their weights."""


@triton.jit
def peaks_kernel(
    logits,
    params,
    history,
    peaks,
    places,
    vocab,
    chunks,
    logits_stride,
    HAS_HISTORY: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """The best logit of a chunk and the first token that has it; NaN if one is not a number."""
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    asked = params + row * COLUMNS
    ids = chunk * CHUNK + tl.arange(0, CHUNK)
    is_inside = ids < vocab
    line = logits + row * logits_stride
    raw = load_logits(line, ids, is_inside)
    is_broken = tl.max(((raw != raw) | (raw == float("inf"))).to(tl.int32), axis=0)
    x = load_shaped(line, history, asked, ids, is_inside, vocab, HAS_HISTORY)
    best, place = tl.max(tl.where(x == x, x, float("-inf")), axis=0, return_indices=True)
    tl.store(peaks + row * chunks + chunk, tl.where(is_broken > 0, float("nan"), best))
    tl.store(places + row * chunks + chunk, chunk * CHUNK + place)


@triton.jit
def masses_kernel(
    logits,
    params,
    history,
    peaks,
    partial,
    vocab,
    chunks,
    logits_stride,
    HAS_HISTORY: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """The sums of a chunk, see FIELDS."""
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    asked = params + row * COLUMNS
    if tl.load(asked + TEMPERATURE) > 0:
        best, _, _ = peak_of(peaks + row * chunks, chunks, CHUNKS)
        ids = chunk * CHUNK + tl.arange(0, CHUNK)
        is_inside = ids < vocab
        line = logits + row * logits_stride
        x = load_shaped(line, history, asked, ids, is_inside, vocab, HAS_HISTORY)
        depth = depth_of(x, best, asked)
        weight = tl.where(is_inside, tl.exp(depth), 0.0)
        target = partial + row * FIELDS * chunks + chunk
        for part in tl.static_range(6):
            if part < 4:
                is_in = is_inside & (depth >= -(3.0 * 2**part))
            elif part == 4:
                is_in = weight > 0.0
            else:
                is_in = is_inside & (weight >= tl.load(asked + MIN_P))
            count = tl.sum(is_in.to(tl.int32), axis=0).to(tl.float64)
            tl.store(target + part * chunks, count)
            mass = tl.sum(tl.where(is_in, weight, 0.0), axis=0)
            tl.store(target + (6 + part) * chunks, mass)


@triton.jit
def gather_kernel(
    logits,
    params,
    history,
    peaks,
    partial,
    heads,
    vocab,
    chunks,
    logits_stride,
    HAS_HISTORY: tl.constexpr,
    CAPACITY: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """Write the tokens of a chunk that belong to its row's head, in order, behind those of the
    chunks before."""
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    asked = params + row * COLUMNS
    if tl.load(asked + TEMPERATURE) > 0:
        sums = partial + row * FIELDS * chunks
        head, _size, is_small = head_of(sums, asked, vocab, chunks, CAPACITY, CHUNKS)
        if is_small:
            best, _, _ = peak_of(peaks + row * chunks, chunks, CHUNKS)
            before = tl.arange(0, CHUNKS)
            counts = tl.load(sums + head * chunks + before, mask=before < chunk, other=0.0)
            first = tl.sum(counts, axis=0).to(tl.int32)
            ids = chunk * CHUNK + tl.arange(0, CHUNK)
            is_inside = ids < vocab
            line = logits + row * logits_stride
            x = load_shaped(line, history, asked, ids, is_inside, vocab, HAS_HISTORY)
            width = 3.0 * tl.exp2(head.to(tl.float64))
            is_in = is_inside & (depth_of(x, best, asked) >= -width)
            place = first + tl.cumsum(is_in.to(tl.int32), axis=0) - 1
            is_in = is_in & (place < CAPACITY)
            tl.store(heads + row * CAPACITY + place, ids, mask=is_in)


@triton.jit
def draw_kernel(
    logits,
    params,
    history,
    peaks,
    places,
    partial,
    heads,
    tokens,
    sound,
    vocab,
    chunks,
    logits_stride,
    HAS_HISTORY: tl.constexpr,
    CAPACITY: tl.constexpr,
    CHUNKS: tl.constexpr,
    TILE: tl.constexpr,
):
    """The token of one row."""
    row = tl.program_id(0).to(tl.int64)
    asked = params + row * COLUMNS
    best, chunk, is_sound = peak_of(peaks + row * chunks, chunks, CHUNKS)
    token = tl.load(places + row * chunks + chunk)
    if is_sound:
        if tl.load(asked + TEMPERATURE) > 0:
            line, head = logits + row * logits_stride, heads + row * CAPACITY
            sums = partial + row * FIELDS * chunks
            _, size, is_small = head_of(sums, asked, vocab, chunks, CAPACITY, CHUNKS)
            count = tl.where(is_small, size, vocab)
            if count <= TILE:
                token = drawn(
                    line, history, asked, sums, head, best, vocab, chunks, is_small, count,
                    HAS_HISTORY, CHUNKS, True, TILE,
                )  # fmt: skip
            else:
                token = drawn(
                    line, history, asked, sums, head, best, vocab, chunks, is_small, count,
                    HAS_HISTORY, CHUNKS, False, TILE,
                )  # fmt: skip
    else:
        token = 0
    tl.store(tokens + row, token.to(tl.int64))
    tl.store(sound + row, is_sound.to(tl.int8))


def sample(
    logits: Tensor,
    params: Tensor,
    history: Tensor | None = None,
    *,
    out: tuple[Tensor, Tensor] | None = None,
    scratch: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """A token for each row, and whether it is one: int64 (rows,) and bool (rows,).

    ``logits`` (rows, vocabulary) of floats with any row stride. ``params`` float64 (rows, COLUMNS)
    as ``reference.sampling.pack`` makes them; the uniform number of a row is among them. Rows with
    a slot of their own read ``history``, int32 (slots, vocabulary), contiguous: for each token
    1 if the prompt has it, plus 2 for each time that the output has it. Counts, not a list of
    tokens: their size is fixed whatever the length (a captured graph needs that), a step adds 2 at
    one place, and no pass has to sort or to count. The caller adds.

    A row whose best logit is infinite, or that holds NaN, gets token 0 and False. Otherwise the
    token is that of ``executor.sampler`` for the same uniform number, but where the rounding of
    penalised logits to float32 or the last bits of float64 sums decide. ``out`` are tensors for
    both; ``scratch`` are ``scratch_bytes`` bytes, uint8. Raises InvariantBroken if shapes do not
    fit."""
    rows, vocab = logits.shape
    require(logits.dtype in FLOATS and is_dense(logits) and vocab > 0, "logits are dense rows")
    require(params.shape == (rows, COLUMNS.value) and params.is_contiguous(), "params fit the rows")
    require(params.dtype == torch.float64, "params are float64")
    if history is not None:
        require(history.ndim == 2 and history.shape[1] == vocab, "a history counts every token")
        require(history.dtype == torch.int32 and history.is_contiguous(), "a history is int32")
    if out is None:
        out = params.new_empty(rows, dtype=torch.int64), params.new_empty(rows, dtype=torch.bool)
    tokens, sound = out
    require(tokens.shape == sound.shape == (rows,), "a token for each row")
    require(tokens.dtype == torch.int64 and sound.dtype == torch.bool, "tokens are int64")
    require(tokens.is_contiguous() and sound.is_contiguous(), "tokens are contiguous")
    size = scratch_bytes(rows, vocab)
    if scratch is None:
        scratch = params.new_empty(size, dtype=torch.uint8)
    require(scratch.dtype == torch.uint8 and scratch.numel() >= size, "scratch is large enough")
    require(scratch.is_contiguous() and scratch.data_ptr() % 8 == 0, "scratch is aligned")
    if rows:
        _launch(logits, params, history, scratch, out)
    return out


def scratch_bytes(rows: int, vocab: int) -> int:
    """Bytes that ``sample`` needs for so many rows: up to 132 KiB each."""
    return rows * sum(_row_bytes(vocab))


def _row_bytes(vocab: int) -> tuple[int, int, int, int]:
    """Of sums, peaks, places and heads: the widest numbers first, so that all are aligned."""
    chunks = triton.cdiv(vocab, CHUNK)
    return 8 * FIELDS.value * chunks, 4 * chunks, 4 * chunks, 4 * CAPACITY


def _launch(
    logits: Tensor,
    params: Tensor,
    history: Tensor | None,
    scratch: Tensor,
    out: tuple[Tensor, Tensor],
) -> None:
    rows, vocab = logits.shape
    chunks = triton.cdiv(vocab, CHUNK)
    sizes = [rows * size for size in _row_bytes(vocab)]
    parts = scratch[: sum(sizes)].split(sizes)
    kinds = (torch.float64, torch.float32, torch.int32, torch.int32)
    partial, peaks, places, heads = (
        part.view(kind) for part, kind in zip(parts, kinds, strict=True)
    )
    common = (logits, params, places if history is None else history, peaks)
    ends = (vocab, chunks, logits.stride(0))
    options = {"HAS_HISTORY": history is not None, **UNFUSED}
    sliced = options | {"CHUNK": CHUNK, "num_warps": 8}
    padded = {"CHUNKS": triton.next_power_of_2(chunks)}
    grid = (rows, chunks)
    peaks_kernel[grid](*common, places, *ends, **sliced)
    masses_kernel[grid](*common, partial, *ends, **padded, **sliced)
    gather_kernel[grid](*common, partial, heads, *ends, CAPACITY=CAPACITY, **padded, **sliced)
    draw_kernel[(rows,)](
        *common, places, partial, heads, out[0], out[1].view(torch.int8), *ends,
        CAPACITY=CAPACITY, TILE=TILE, num_warps=8, **padded, **options,
    )  # fmt: skip
