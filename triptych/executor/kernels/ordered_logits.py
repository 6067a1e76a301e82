"""Logits as what sampling orders them by: penalised, and as integers that compare as they do.

Shared by the kernels that draw tokens and report them. Knows one row, not what is cut from it.
"""

import triton
import triton.language as tl

from triptych.executor.kernels.reference import sampling as reference

TEMPERATURE = tl.constexpr(reference.TEMPERATURE)
TOP_K = tl.constexpr(reference.TOP_K)
TOP_P = tl.constexpr(reference.TOP_P)
MIN_P = tl.constexpr(reference.MIN_P)
REPETITION = tl.constexpr(reference.REPETITION)
PRESENCE = tl.constexpr(reference.PRESENCE)
FREQUENCY = tl.constexpr(reference.FREQUENCY)
UNIFORM = tl.constexpr(reference.UNIFORM)
SLOT = tl.constexpr(reference.SLOT)
COLUMNS = tl.constexpr(reference.COLUMNS)
NO_KEY = tl.constexpr(-(2**31))
"""Below the key of every number."""


@triton.jit
def load_logits(logits, ids, is_inside):
    """float32 logits of a row; minus infinity outside; never minus zero, which equals zero."""
    x = tl.load(logits + ids, mask=is_inside, other=float("-inf")).to(tl.float32)
    return tl.where(x == 0.0, 0.0, x)


@triton.jit
def load_shaped(logits, history, asked, ids, is_inside, vocab, HAS_HISTORY: tl.constexpr):
    """The same after the row's penalties, which are worked out in float64."""
    x = load_logits(logits, ids, is_inside)
    if HAS_HISTORY:
        slot = tl.load(asked + SLOT).to(tl.int64)
        if slot >= 0:
            counts = tl.load(history + slot * vocab + ids, mask=is_inside, other=0)
            penalty = tl.load(asked + REPETITION)
            wide = x.to(tl.float64)
            punished = tl.where(wide > 0, wide / penalty, wide * penalty)
            wide = tl.where(counts > 0, punished, wide)
            output = counts // 2
            once = tl.where(output > 0, tl.load(asked + PRESENCE), 0.0)
            wide -= once + tl.load(asked + FREQUENCY) * output.to(tl.float64)
            x = wide.to(tl.float32)
            x = tl.where(x == 0.0, 0.0, x)
    return x


@triton.jit
def flip(bits):
    """Bits of a float32 as an integer that compares as it does, and back."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def keys_of(x, is_inside):
    """Integers that compare as the numbers do."""
    return tl.where(is_inside, flip(x.to(tl.int32, bitcast=True)), NO_KEY)


@triton.jit
def depth_of(x, best, asked):
    """How far below the best logit, in units of the temperature: the logarithm of a weight."""
    inverse = tl.minimum(1.0 / tl.load(asked + TEMPERATURE), 1e308)
    return (x.to(tl.float64) - best.to(tl.float64)) * inverse
