"""Draws tokens: a pure function of (sampling, seed, position, logits), whoever shares the step.

Per row, in this order: repetition penalty (arXiv 1909.05858, section 4.1), presence and frequency
penalties, temperature; then the tokens in descending order of probability, equal ones in order of
id, are cut to ``top_k``, to the smallest head whose mass reaches ``top_p`` (arXiv 1904.09751) and
to those of at least ``min_p`` of the best (arXiv 2407.01082); one uniform number picks of the rest.
Log-probabilities that are reported are of the raw logits, before penalties and temperature.
"""

import hashlib
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from triptych.core.errors import InvariantBroken
from triptych.core.plan import Draw, Drawn
from triptych.core.request import Sampling

Row = NDArray[np.float64]


def draw(logits: Tensor, draws: Sequence[Draw]) -> tuple[Drawn, ...]:
    """A token for each row of ``logits``, float32 (draws, vocabulary).

    Raises InvariantBroken if a row's best logit is not a finite number.
    """
    if not draws:
        return ()
    best, ids = logits.max(dim=-1)
    if not all(map(math.isfinite, best.tolist())):
        raise InvariantBroken("logits are not finite")
    greedy = ids.tolist()
    if all(_is_plain(one.sampling) for one in draws):
        return tuple(map(Drawn, greedy))
    rows = logits.cpu().numpy()
    return tuple(
        Drawn(token) if _is_plain(one.sampling) else _draw_row(row, one)
        for one, token, row in zip(draws, greedy, rows, strict=True)
    )


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on ``seed`` and ``position`` only: 53 bits of a hash."""
    counter = (seed % 2**128).to_bytes(16, "little") + position.to_bytes(8, "little")
    state = hashlib.blake2b(counter, digest_size=8, person=b"triptych-draw").digest()
    return (int.from_bytes(state, "little") >> 11) * 2.0**-53


def _is_plain(sampling: Sampling) -> bool:
    """Whether the answer is the best logit's id and nothing else is asked."""
    return sampling.temperature == 0 and sampling.logprobs < 0 and not sampling.needs_history


def _draw_row(raw: NDArray[np.float32], one: Draw) -> Drawn:
    sampling = one.sampling
    logits = raw.astype(np.float64)
    if np.isnan(logits).any():
        raise InvariantBroken("logits are not finite")
    shaped = _penalise(logits, one) if sampling.needs_history else logits
    if sampling.temperature == 0:
        token = int(shaped.argmax())
    else:
        token = _sample(shaped, sampling, uniform(sampling.seed, one.position))
    if sampling.logprobs < 0:
        return Drawn(token)
    return _report(logits, token, sampling.logprobs)


def check_history(one: Draw, vocab: int) -> None:
    """Raise InvariantBroken unless a draw that needs its history has all of it, tokens below
    ``vocab``."""
    tokens = one.history or (0,)
    if len(one.history) != one.position or min(tokens) < 0 or max(tokens) >= vocab:
        raise InvariantBroken("a draw's history does not reach its position")


def _penalise(logits: Row, one: Draw) -> Row:
    sampling, size = one.sampling, len(logits)
    history = np.array(one.history, dtype=np.int64)
    check_history(one, size)
    shaped = logits.copy()
    seen = np.unique(history)
    scores = shaped[seen]
    penalty = sampling.repetition_penalty
    shaped[seen] = np.where(scores > 0, scores / penalty, scores * penalty)
    counts = np.bincount(history[one.prompt_len :], minlength=size)
    shaped -= sampling.presence_penalty * (counts > 0) + sampling.frequency_penalty * counts
    return shaped


def _sample(logits: Row, sampling: Sampling, number: float) -> int:
    """Inverse of the cumulative distribution, in float64 and in sorted order."""
    order = _descending(logits, sampling.top_k or len(logits))
    best = logits[order[0]]
    with np.errstate(over="ignore"):  # a temperature near 0 sends all but the best to -inf
        weights = np.exp((logits[order] - best) / sampling.temperature)
    mass = np.cumsum(weights)
    keep = len(order)
    if sampling.top_p < 1:
        keep = int(np.searchsorted(mass, sampling.top_p * mass[-1])) + 1
    if sampling.min_p > 0:
        keep = min(keep, int(np.count_nonzero(weights >= sampling.min_p)))
    keep = max(1, min(keep, int(np.count_nonzero(weights))))
    picked = np.searchsorted(mass[:keep], number * mass[keep - 1], side="right")
    return int(order[min(int(picked), keep - 1)])


def _descending(values: Row, count: int) -> NDArray[np.int64]:
    """Indices of the ``count`` largest values, largest first, equal ones in order of index."""
    if not 0 < count < len(values):
        return np.argsort(-values, kind="stable")[: max(count, 0)]
    least = np.partition(values, len(values) - count)[len(values) - count]
    found = np.flatnonzero(values >= least)
    return found[np.argsort(-values[found], kind="stable")][:count]


def _report(logits: Row, token: int, count: int) -> Drawn:
    best = logits.max()
    logprobs = logits - best - math.log(np.exp(logits - best).sum())
    top = _descending(logprobs, count)
    return Drawn(
        token,
        float(logprobs[token]),
        tuple((int(index), float(logprobs[index])) for index in top),
    )
