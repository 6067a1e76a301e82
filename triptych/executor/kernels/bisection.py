"""Where in a row's sorted order a count or a mass is reached, without sorting it.

A prefix of the order is all tokens whose key is above a threshold, and the first few of those at
it, in order of id. The threshold is found two bits at a time: sixteen passes, whatever the row.
Device functions of ``kernels.sampling``, which says what the sums of a row are.
"""

import triton
import triton.language as tl

from triptych.executor.kernels.ordered_logits import (
    MIN_P,
    NO_KEY,
    TOP_K,
    TOP_P,
    UNIFORM,
    depth_of,
    keys_of,
    load_shaped,
)


@triton.jit
def peak_of(peaks, chunks, CHUNKS: tl.constexpr):
    """The best logit of a row, the first chunk that has it, and whether all is sound."""
    place = tl.arange(0, CHUNKS)
    peak = tl.load(peaks + place, mask=place < chunks, other=float("-inf"))
    is_broken = tl.max((peak != peak).to(tl.int32), axis=0)
    peak = tl.where(peak == peak, peak, float("-inf"))
    best, chunk = tl.max(peak, axis=0, return_indices=True)
    is_finite = (best > float("-inf")) & (best < float("inf"))
    return best, chunk, is_finite & (is_broken == 0)


@triton.jit
def total_of(sums, field, chunks, CHUNKS: tl.constexpr):
    """One sum of a row over its chunks."""
    place = tl.arange(0, CHUNKS)
    part = tl.load(sums + field * chunks + place, mask=place < chunks, other=0.0)
    return tl.sum(part, axis=0)


@triton.jit
def head_of(sums, asked, vocab, chunks, CAPACITY: tl.constexpr, CHUNKS: tl.constexpr):
    """The least distance within which all lies that the row's token depends on beside the row's
    sums, how many tokens that are, and whether they are few enough to have been gathered."""
    top_k, top_p = tl.load(asked + TOP_K), tl.load(asked + TOP_P)
    mass = total_of(sums, 10, chunks, CHUNKS)
    needed = mass * tl.where(top_p < 1.0, top_p, tl.load(asked + UNIFORM))
    is_cut = (top_k > 0) & (top_k < vocab)
    head = 4
    size = mass
    for back in tl.static_range(4):
        count = total_of(sums, 3 - back, chunks, CHUNKS)
        inner = total_of(sums, 9 - back, chunks, CHUNKS)
        has_mass = tl.where(top_p < 1.0, inner >= needed, inner > needed)
        is_enough = tl.where(is_cut, count >= top_k, has_mass)
        head = tl.where(is_enough, 3 - back, head)
        size = tl.where(is_enough, count, size)
    return head, size.to(tl.int32), (head < 4) & (size <= CAPACITY)


@triton.jit
def tile_of(
    line, history, asked, heads, is_small, start, count, vocab,
    HAS_HISTORY: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Ids, logits and which of them are there, of a tile of candidates."""
    place = start + tl.arange(0, TILE)
    is_inside = place < count
    gathered = tl.load(heads + place, mask=is_inside & is_small, other=0)
    ids = tl.where(is_small, gathered, place)
    x = load_shaped(line, history, asked, ids, is_inside, vocab, HAS_HISTORY)
    return ids, x, is_inside


@triton.jit
def threshold(
    line, history, asked, heads, is_small, count, vocab, best, keys, weights, target,
    BY_COUNT: tl.constexpr, IS_STRICT: tl.constexpr, HAS_HISTORY: tl.constexpr,
    IS_ONE_TILE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The largest key so that tokens of it or above reach ``target`` in number or in weight
    (``IS_STRICT``: exceed it); NO_KEY if all together do not. ``keys`` and ``weights`` are those
    of the first tile."""
    found = count.to(tl.int64) * 0
    for step in range(16):
        unit = (found * 0 + 1) << (30 - 2 * step)
        first = (found + unit + NO_KEY).to(tl.int32)
        second = (found + 2 * unit + NO_KEY).to(tl.int32)
        third = (found + 3 * unit + NO_KEY).to(tl.int32)
        weight = tl.full((TILE,), 1.0, tl.float64) if BY_COUNT else weights
        sum_1 = tl.where(keys >= first, weight, 0.0)
        sum_2 = tl.where(keys >= second, weight, 0.0)
        sum_3 = tl.where(keys >= third, weight, 0.0)
        if not IS_ONE_TILE:
            for start in range(TILE, count, TILE):
                _, x, is_inside = tile_of(
                    line, history, asked, heads, is_small, start, count, vocab, HAS_HISTORY, TILE
                )
                key = keys_of(x, is_inside)
                if not BY_COUNT:
                    weight = tl.exp(depth_of(x, best, asked))
                sum_1 += tl.where(key >= first, weight, 0.0)
                sum_2 += tl.where(key >= second, weight, 0.0)
                sum_3 += tl.where(key >= third, weight, 0.0)
        reached = tl.where(is_reached(tl.sum(sum_1, axis=0), target, IS_STRICT), 1, 0)
        reached = tl.where(is_reached(tl.sum(sum_2, axis=0), target, IS_STRICT), 2, reached)
        reached = tl.where(is_reached(tl.sum(sum_3, axis=0), target, IS_STRICT), 3, reached)
        found += reached * unit
    return (found + NO_KEY).to(tl.int32)


@triton.jit
def is_reached(total, target, IS_STRICT: tl.constexpr):
    """Whether a prefix goes far enough."""
    return total > target if IS_STRICT else total >= target


@triton.jit
def around(
    line, history, asked, heads, is_small, count, vocab, best, keys, weights, key_at,
    HAS_HISTORY: tl.constexpr, IS_ONE_TILE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """How many tokens are above a key and their weight, how many are at it and the weight of
    each."""
    is_tie = (keys == key_at) & (keys != NO_KEY)
    above = (keys > key_at).to(tl.int32)
    ties = is_tie.to(tl.int32)
    mass = tl.where(keys > key_at, weights, 0.0)
    each = tl.where(is_tie, weights, 0.0)
    if not IS_ONE_TILE:
        for start in range(TILE, count, TILE):
            _, x, is_inside = tile_of(
                line, history, asked, heads, is_small, start, count, vocab, HAS_HISTORY, TILE
            )
            key = keys_of(x, is_inside)
            weight = tl.exp(depth_of(x, best, asked))
            above += (key > key_at).to(tl.int32)
            mass += tl.where(key > key_at, weight, 0.0)
            is_tie = is_inside & (key == key_at)
            ties += is_tie.to(tl.int32)
            each = tl.where(is_tie, weight, each)
    return (
        tl.sum(above, axis=0).to(tl.float64),
        tl.sum(mass, axis=0),
        tl.sum(ties, axis=0).to(tl.float64),
        tl.max(each, axis=0),
    )


@triton.jit
def token_at(
    line, history, asked, heads, is_small, count, vocab, key_at, number,
    HAS_HISTORY: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The ``number``-th token whose key is ``key_at``, counted from 1 in order of id."""
    token = count * 0
    passed = count * 0
    for start in range(0, count, TILE):
        ids, x, is_inside = tile_of(
            line, history, asked, heads, is_small, start, count, vocab, HAS_HISTORY, TILE
        )
        is_tie = (is_inside & (keys_of(x, is_inside) == key_at)).to(tl.int32)
        order = passed + tl.cumsum(is_tie, axis=0)
        is_it = (is_tie > 0) & (order == number)
        token = tl.maximum(token, tl.max(tl.where(is_it, ids, 0), axis=0))
        passed += tl.sum(is_tie, axis=0)
    return token


@triton.jit
def prefix(
    line, history, asked, heads, is_small, count, vocab, best, keys, weights, target,
    BY_COUNT: tl.constexpr, IS_STRICT: tl.constexpr, HAS_HISTORY: tl.constexpr,
    IS_ONE_TILE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The threshold of the shortest prefix that reaches ``target``, how many tokens are above it
    and their weight, how many of those at it belong to the prefix, and the weight of each."""
    key_at = threshold(
        line, history, asked, heads, is_small, count, vocab, best, keys, weights, target,
        BY_COUNT, IS_STRICT, HAS_HISTORY, IS_ONE_TILE, TILE,
    )  # fmt: skip
    above, mass, ties, each = around(
        line, history, asked, heads, is_small, count, vocab, best, keys, weights, key_at,
        HAS_HISTORY, IS_ONE_TILE, TILE,
    )  # fmt: skip
    if BY_COUNT:
        taken = target - above
    elif IS_STRICT:
        taken = tl.where(each > 0.0, tl.floor((target - mass) / each) + 1.0, 1.0)
    else:
        taken = tl.where(each > 0.0, tl.ceil((target - mass) / each), 1.0)
    return key_at, above, mass, tl.maximum(tl.minimum(taken, ties), 1.0), each


@triton.jit
def drawn(
    line, history, asked, sums, heads, best, vocab, chunks, is_small, count,
    HAS_HISTORY: tl.constexpr, CHUNKS: tl.constexpr, IS_ONE_TILE: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """The token of a row that is not greedy, among ``count`` candidates: those gathered if
    ``is_small``, else all. If they are one tile they are loaded once."""
    _, x, is_inside = tile_of(
        line, history, asked, heads, is_small, 0, count, vocab, HAS_HISTORY, TILE
    )
    keys = keys_of(x, is_inside)
    weights = tl.exp(depth_of(x, best, asked))
    top_k, top_p, min_p = tl.load(asked + TOP_K), tl.load(asked + TOP_P), tl.load(asked + MIN_P)
    keep = total_of(sums, 4, chunks, CHUNKS)
    kept = total_of(sums, 10, chunks, CHUNKS)
    if (top_k > 0) & (top_k < vocab):
        key_at, above, mass, taken, each = prefix(
            line, history, asked, heads, is_small, count, vocab, best, keys, weights, top_k,
            True, False, HAS_HISTORY, IS_ONE_TILE, TILE,
        )  # fmt: skip
        keep = tl.minimum(keep, above + taken)
        kept = mass + taken * each
    if top_p < 1.0:
        key_at, above, mass, taken, each = prefix(
            line, history, asked, heads, is_small, count, vocab, best, keys, weights,
            top_p * kept, False, False, HAS_HISTORY, IS_ONE_TILE, TILE,
        )  # fmt: skip
        if above + taken < keep:
            keep = above + taken
            kept = mass + taken * each
    if min_p > 0.0:
        likely = total_of(sums, 5, chunks, CHUNKS)
        if likely < keep:
            keep = likely
            kept = total_of(sums, 11, chunks, CHUNKS)
    keep = tl.maximum(keep, 1.0)  # the best always stays, and its weight is 1
    target = tl.load(asked + UNIFORM) * tl.maximum(kept, 1.0)
    key_at, above, mass, taken, each = prefix(
        line, history, asked, heads, is_small, count, vocab, best, keys, weights, target,
        False, True, HAS_HISTORY, IS_ONE_TILE, TILE,
    )  # fmt: skip
    rank = tl.minimum(tl.minimum(above + taken, keep), count.to(tl.float64))
    if rank < above + taken:  # by rounding only: the last that is left
        key_at, above, mass, taken, each = prefix(
            line, history, asked, heads, is_small, count, vocab, best, keys, weights, rank,
            True, False, HAS_HISTORY, IS_ONE_TILE, TILE,
        )  # fmt: skip
    return token_at(
        line, history, asked, heads, is_small, count, vocab, key_at, taken.to(tl.int32),
        HAS_HISTORY, TILE,
    )  # fmt: skip
