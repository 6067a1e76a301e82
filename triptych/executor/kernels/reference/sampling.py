"""Twin of the sampler on a device, and what it is asked for: a row of numbers for each draw.

The specification of both is ``executor.sampler``: the same steps in the same order, in float64.
One rounding more is made here: penalised logits are float32 again before they are ordered, so
tokens whose penalised logits differ by less than that are equal.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from triptych.core.plan import Draw
from triptych.executor.sampler import uniform

TEMPERATURE, TOP_K, TOP_P, MIN_P, REPETITION, PRESENCE, FREQUENCY, UNIFORM, SLOT = range(9)
"""Columns of a row of parameters, all float64 so that they travel to the device as one tensor.
``SLOT`` is the row's history, -1 where none is needed."""
COLUMNS = 9
SEEN, ONE_MORE = 1, 2
"""A history's number of a token: ``SEEN`` if the prompt has it, plus ``ONE_MORE`` for each time
that the output has it."""


def pack(draws: Sequence[Draw], slots: Sequence[int]) -> Tensor:
    """Parameters (draws, COLUMNS) of ``draws``, whose histories are rows ``slots``; on the CPU."""
    rows = [
        (
            *(one.sampling.temperature, one.sampling.top_k, one.sampling.top_p),
            *(one.sampling.min_p, one.sampling.repetition_penalty),
            *(one.sampling.presence_penalty, one.sampling.frequency_penalty),
            uniform(one.sampling.seed, one.position),
            slot if one.sampling.needs_history else -1,
        )
        for one, slot in zip(draws, slots, strict=True)
    ]
    return torch.tensor(rows, dtype=torch.float64).view(-1, COLUMNS)


def history_of(draw: Draw, vocab: int) -> Tensor:
    """int32 (vocab,): the history of a draw whose tokens are known on the host."""
    tokens = torch.tensor(draw.history, dtype=torch.int64)
    prompt, output = tokens[: draw.prompt_len], tokens[draw.prompt_len :]
    counts = ONE_MORE * torch.bincount(output, minlength=vocab)
    counts[prompt] |= SEEN
    return counts.int()


def sample(
    logits: Tensor,
    params: Tensor,
    history: Tensor | None = None,
    *,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """See ``kernels.sampling``."""
    found = [_draw(*pair, history) for pair in zip(logits, params.tolist(), strict=True)]
    tokens = torch.tensor([token for token, _ in found], dtype=torch.int64, device=logits.device)
    is_sound = torch.tensor([sound for _, sound in found], device=logits.device)
    return (tokens, is_sound) if out is None else (out[0].copy_(tokens), out[1].copy_(is_sound))


def top_logprobs(logits: Tensor, tokens: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """See ``kernels.logprobs``."""
    wide = logits.double().log_softmax(-1)
    values, ids = wide.sort(dim=-1, descending=True, stable=True)
    own = wide.gather(1, tokens.long()[:, None])[:, 0]
    return own.float(), ids[:, :count], values[:, :count].float()


def _draw(row: Tensor, asked: list[float], history: Tensor | None) -> tuple[int, bool]:
    if row.isnan().any() or not row.max().isfinite():
        return 0, False
    if history is not None and asked[SLOT] >= 0:
        row = _penalise(row, asked, history[int(asked[SLOT])])
    if asked[TEMPERATURE] == 0:
        return int(row.argmax()), True
    values, order = row.double().sort(descending=True, stable=True)
    if 0 < asked[TOP_K] < len(order):
        values = values[: int(asked[TOP_K])]
    weights = torch.exp((values - values[0]) / asked[TEMPERATURE])
    mass = weights.cumsum(0)
    keep = len(values)
    if asked[TOP_P] < 1:
        keep = int(torch.searchsorted(mass, asked[TOP_P] * mass[-1])) + 1
    if asked[MIN_P] > 0:
        keep = min(keep, int((weights >= asked[MIN_P]).sum()))
    keep = max(1, min(keep, int(weights.count_nonzero())))
    picked = torch.searchsorted(mass[:keep], asked[UNIFORM] * mass[keep - 1], right=True)
    return int(order[min(int(picked), keep - 1)]), True


def _penalise(row: Tensor, asked: list[float], counts: Tensor) -> Tensor:
    wide, penalty = row.double(), asked[REPETITION]
    wide = torch.where(counts > 0, torch.where(wide > 0, wide / penalty, wide * penalty), wide)
    output = counts // ONE_MORE
    return (wide - (asked[PRESENCE] * (output > 0) + asked[FREQUENCY] * output)).float()
