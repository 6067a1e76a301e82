"""Log-probabilities of drawn tokens and of the likeliest, of the raw logits; where asked for only.

Programs over chunks of the vocabulary keep each chunk's best; one program a row merges them. In
float64, in fixed chunks: a row's numbers depend on no other row.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from triptych.executor.kernels.arguments import FLOATS, is_dense, require
from triptych.executor.kernels.ordered_logits import NO_KEY, flip, keys_of, load_logits
from triptych.executor.kernels.quantise import UNFUSED

CHUNK = 4096
MOST = 32
"""Alternatives of a token, at most."""


@triton.jit
def chunk_best_kernel(
    logits,
    peaks,
    sums,
    keys,
    ids_out,
    vocab,
    chunks,
    logits_stride,
    count,
    CHUNK: tl.constexpr,
):
    """Of a chunk: its best logit, the sum of weights beside it, its ``count`` best tokens."""
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    ids = chunk * CHUNK + tl.arange(0, CHUNK)
    is_inside = ids < vocab
    x = load_logits(logits + row * logits_stride, ids, is_inside)
    best = tl.max(x, axis=0)
    # A chunk of minus infinities only has no weight, whatever it is measured against.
    base = tl.where(best > float("-inf"), best, 0.0).to(tl.float64)
    weight = tl.where(is_inside, tl.exp(x.to(tl.float64) - base), 0.0)
    at = row * chunks + chunk
    tl.store(peaks + at, base)
    tl.store(sums + at, tl.sum(weight, axis=0))
    key = keys_of(x, is_inside)
    for number in range(count):
        most, place = tl.max(key, axis=0, return_indices=True)
        tl.store(keys + at * count + number, most)
        tl.store(ids_out + at * count + number, chunk * CHUNK + place)
        key = tl.where(ids == chunk * CHUNK + place, NO_KEY, key)


@triton.jit
def merge_best_kernel(
    logits,
    tokens,
    peaks,
    sums,
    keys,
    ids_in,
    own,
    ids_out,
    values,
    chunks,
    logits_stride,
    count,
    CHUNKS: tl.constexpr,
    CANDIDATES: tl.constexpr,
):
    """One row."""
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, CHUNKS)
    is_chunk = place < chunks
    peak = tl.load(peaks + row * chunks + place, mask=is_chunk, other=float("-inf"))
    weight = tl.load(sums + row * chunks + place, mask=is_chunk, other=0.0)
    # Chunks without weight have the peak 0, which may be above all others.
    best = tl.max(tl.where(weight > 0.0, peak, float("-inf")), axis=0)
    part = tl.where(weight > 0.0, weight * tl.exp(peak - best), 0.0)
    level = best + tl.log(tl.sum(part, axis=0))
    token = tl.load(tokens + row).to(tl.int64)
    chosen = tl.load(logits + row * logits_stride + token).to(tl.float64)
    tl.store(own + row, (chosen - level).to(tl.float32))
    if count > 0:
        candidate = tl.arange(0, CANDIDATES)
        is_inside = candidate < chunks * count
        key = tl.load(keys + row * chunks * count + candidate, mask=is_inside, other=NO_KEY)
        for number in range(count):
            # Chunks lie in order and so do equals in a chunk: the first of equals is the lowest.
            most, at = tl.max(key, axis=0, return_indices=True)
            tl.store(ids_out + row * count + number, tl.load(ids_in + row * chunks * count + at))
            value = flip(most).to(tl.float32, bitcast=True).to(tl.float64) - level
            tl.store(values + row * count + number, value.to(tl.float32))
            key = tl.where(candidate == at, NO_KEY, key)


def top_logprobs(logits: Tensor, tokens: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities float32 (rows,) of ``tokens``, and the ``count`` likeliest of each row:
    int64 ids and float32 log-probabilities (rows, count), likeliest first, equals in order of id.

    ``logits`` (rows, vocabulary) of floats with any row stride, without NaN and with a finite
    best; ``tokens`` integers (rows,). Sums are float64. Raises InvariantBroken if shapes do not
    fit."""
    rows, vocab = logits.shape
    require(logits.dtype in FLOATS and is_dense(logits) and vocab > 0, "logits are dense rows")
    require(tokens.shape == (rows,) and not tokens.is_floating_point(), "a token for each row")
    require(tokens.is_contiguous() and 0 <= count <= min(MOST, vocab), "0 to 32 alternatives")
    chunks = triton.cdiv(vocab, CHUNK)
    peaks, sums = logits.new_empty(2, rows, chunks, dtype=torch.float64).unbind()
    keys, places = logits.new_empty(2, rows, chunks, count, dtype=torch.int32).unbind()
    own = logits.new_empty(rows, dtype=torch.float32)
    ids = logits.new_empty(rows, count, dtype=torch.int64)
    values = logits.new_empty(rows, count, dtype=torch.float32)
    if rows:
        chunk_best_kernel[(rows, chunks)](
            logits, peaks, sums, keys, places, vocab, chunks, logits.stride(0), count,
            CHUNK=CHUNK, num_warps=8, **UNFUSED,
        )  # fmt: skip
        merge_best_kernel[(rows,)](
            logits, tokens, peaks, sums, keys, places, own, ids, values,
            chunks, logits.stride(0), count,
            CHUNKS=triton.next_power_of_2(chunks),
            CANDIDATES=triton.next_power_of_2(chunks * max(count, 1)), num_warps=4, **UNFUSED,
        )  # fmt: skip
    return own, ids, values
