"""Attention over paged KV and over spans, a sequence at a time, in float32.

What the kernels of ``decode``, ``cascade``, ``prefill`` and ``varlen`` must give. Plans are read
for their lengths only: how work is cut changes no result.
"""

from itertools import pairwise

import torch
from torch import Tensor

from triptych.executor.kernels.attention_plan import CascadePlan, PrefillPlan, VarlenPlan
from triptych.executor.kernels.attention_shapes import check_index, check_paged, check_spans


def _context(stored: Tensor, blocks: Tensor, scales: Tensor | None, length: int) -> Tensor:
    """The first ``length`` tokens of a sequence: float32 (tokens, KV heads, head_dim)."""
    used = blocks[: -(-length // stored.shape[1])].long()
    context = stored[used].flatten(0, 1)[:length].float()
    if scales is None:
        return context
    return context * scales[used].flatten(0, 1)[:length, :, None]


def _attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float) -> Tensor:
    """``query`` (rows, heads, head_dim) where ``mask`` (rows, tokens) lets it see."""
    group = query.shape[1] // keys.shape[1]
    keys, values = (part.repeat_interleave(group, dim=1) for part in (keys, values))
    scores = torch.einsum("rhd,thd->hrt", query.float(), keys) * scale
    weights = scores.masked_fill(~mask, float("-inf")).softmax(-1)
    return torch.einsum("hrt,thd->rhd", weights, values)


def _mask(rows: int, end: int, window: int) -> Tensor:
    """bool (rows, end): the last row sees ``end`` tokens, each before it one less."""
    seen = torch.arange(end - rows, end)[:, None] + 1
    tokens = torch.arange(end)
    mask = tokens < seen
    return mask & (tokens >= seen - window) if window else mask


def paged_decode(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    table: Tensor,
    ends: Tensor,
    *,
    scale: float,
    window: int = 0,
    key_scales: Tensor | None = None,
    value_scales: Tensor | None = None,
    deterministic: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """One token of each sequence; see ``decode.paged_decode``."""
    check_paged(query, keys, values, table, key_scales, value_scales, out, scale)
    check_index(ends, (query.shape[0],), "ends")
    check_index(table, (query.shape[0], table.shape[1]), "table")
    del deterministic  # a sequence at a time: always so
    out = torch.empty_like(query) if out is None else out
    for row, end in enumerate(ends.tolist()):
        if end == 0:
            out[row] = 0
            continue
        held = _context(keys, table[row], key_scales, end)
        worth = _context(values, table[row], value_scales, end)
        mask = _mask(1, end, window).to(query.device)
        out[row] = _attend(query[row, None], held, worth, mask, scale)[0].to(query.dtype)
    return out


def cascade_decode(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    table: Tensor,
    ends: Tensor,
    plan: CascadePlan,
    *,
    scale: float,
    key_scales: Tensor | None = None,
    value_scales: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Decode of sequences that share prefixes is decode: sharing saves reads, nothing else."""
    plan.check(query, keys)
    return paged_decode(
        query,
        keys,
        values,
        table,
        ends,
        scale=scale,
        key_scales=key_scales,
        value_scales=value_scales,
        out=out,
    )


def paged_prefill(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    table: Tensor,
    plan: PrefillPlan,
    *,
    scale: float,
    window: int = 0,
    key_scales: Tensor | None = None,
    value_scales: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Several tokens of each sequence; see ``prefill.paged_prefill``."""
    check_paged(query, keys, values, table, key_scales, value_scales, out, scale)
    plan.check(query, keys, table)
    out = torch.empty_like(query) if out is None else out
    starts = plan.row_starts.tolist()
    for index, end in enumerate(plan.ends.tolist()):
        rows = slice(starts[index], starts[index + 1])
        held = _context(keys, table[index], key_scales, end)
        worth = _context(values, table[index], value_scales, end)
        mask = _mask(rows.stop - rows.start, end, window).to(query.device)
        out[rows] = _attend(query[rows], held, worth, mask, scale).to(query.dtype)
    return out


def varlen_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: VarlenPlan,
    *,
    scale: float,
    out: Tensor | None = None,
) -> Tensor:
    """Tokens of a span see one another; see ``varlen.varlen_attention``."""
    check_spans(query, key, value, plan.lows, out, scale)
    out = torch.empty_like(query) if out is None else out
    starts = plan.starts.tolist()
    for start, end in pairwise(starts):
        span = slice(start, end)
        mask = torch.ones(end - start, end - start, dtype=torch.bool, device=query.device)
        held, worth = key[span].float(), value[span].float()
        out[span] = _attend(query[span], held, worth, mask, scale).to(query.dtype)
    return out
