"""Paged sequences for tests, and attention in float64 by plain arithmetic."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

TOLERANCE = {
    torch.float32: 5e-6,
    # Weights are rounded to 11 bits before they meet values of up to 4; so is the answer.
    torch.float16: 4e-3,
    # The same with 8 bits; and the interpreter cuts where a GPU rounds.
    torch.bfloat16: 4e-2,
}


@dataclass
class Case:
    """Sequences in one store. Whatever no token owns is NaN, or the loudest that a type has."""

    keys: Tensor
    values: Tensor
    key_scales: Tensor | None
    value_scales: Tensor | None
    table: Tensor
    ends: Tensor
    exact: list[Tensor]
    """By sequence, float64 (2, tokens, KV heads, head_dim): what the store means."""
    scale: float

    @property
    def pages(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.keys, self.values, self.table

    @property
    def scales(self) -> dict[str, Tensor | None]:
        return {"key_scales": self.key_scales, "value_scales": self.value_scales}


def loud(shape, dtype: torch.dtype) -> Tensor:
    """NaN, or what comes nearest."""
    if dtype == torch.int8:
        return torch.full(shape, 127, dtype=dtype)
    return torch.full(shape, float("nan")).to(dtype)


def make_case(
    ends: list[int],
    device: torch.device,
    *,
    kv_heads: int = 2,
    head_dim: int = 32,
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
    spare: int = 2,
    shared: tuple[int, int] = (0, 0),
    seed: int = 3,
) -> Case:
    """``shared`` = (sequences, blocks): of each so many sequences, those that are long enough have
    the first blocks of the first of them."""
    rng = torch.Generator().manual_seed(seed)
    widths = [-(-end // block_size) for end in ends]
    blocks = iter(torch.randperm(sum(widths), generator=rng).tolist())
    # One block more, that nobody owns: tables name it behind their end.
    total = sum(widths) + 1
    store = loud((total, 3, 2, block_size, kv_heads, head_dim), dtype)
    scales = torch.full((total, 2, block_size, kv_heads), float("nan"))
    table = torch.full((len(ends), max(widths) + spare), total - 1, dtype=torch.int32)
    exact = []
    for row, end in enumerate(ends):
        leader = row - row % max(shared[0], 1)
        is_sharing = leader < row and min(end, ends[leader]) >= shared[1] * block_size
        held = torch.empty((2, end, kv_heads, head_dim), dtype=torch.float64)
        for index in range(widths[row]):
            table[row, index] = next(blocks)
            if is_sharing and index < shared[1]:
                table[row, index] = table[leader, index]
        for token in range(end):
            block, offset = int(table[row, token // block_size]), token % block_size
            if is_sharing and token < shared[1] * block_size:
                held[:, token] = exact[leader][:, token]
                continue
            fresh = torch.randn((2, kv_heads, head_dim), generator=rng)
            factor = torch.ones(2, kv_heads, 1)
            if dtype == torch.int8:
                factor = fresh.abs().amax(-1, keepdim=True) / 127
                fresh = (fresh / factor).round()
            elif dtype == torch.float8_e4m3fn:
                factor = torch.rand((2, kv_heads, 1), generator=rng) + 0.5
            store[block, 1, :, offset] = fresh.to(dtype)
            scales[block, :, offset] = factor[..., 0]
            held[:, token] = fresh.to(dtype).double() * factor.double()
        exact.append(held)
    store, scales = store.to(device), scales.to(device)
    is_quantised = dtype in (torch.int8, torch.float8_e4m3fn)
    return Case(
        store[:, 1, 0],
        store[:, 1, 1],
        scales[:, 0] if is_quantised else None,
        scales[:, 1] if is_quantised else None,
        table.to(device),
        torch.tensor(ends, dtype=torch.int32, device=device),
        exact,
        head_dim**-0.5,
    )


def random_query(rows: int, heads: int, head_dim: int, dtype: torch.dtype, device) -> Tensor:
    """Heads of a wider tensor: strided, and what lies between is NaN."""
    wide = torch.full((rows, heads + 3, head_dim), float("nan"))
    wide[:, :heads] = torch.from_numpy(
        np.random.default_rng(5).normal(size=(rows, heads, head_dim))
    )
    return wide.to(dtype).to(device)[:, :heads]


def exact_attention(query: Tensor, held: Tensor, scale: float, first: int, window: int) -> Tensor:
    """float64 (rows, heads, head_dim): row ``r`` sees tokens up to ``first + r``."""
    rows, heads, _ = query.shape
    group = heads // held.shape[2]
    query = query.double().cpu()
    answer = torch.zeros_like(query)
    for row in range(rows):
        end = first + row + 1
        begin = max(0, end - window) if window else 0
        for head in range(heads):
            keys, values = held[:, begin:end, head // group]
            weights = (keys @ query[row, head] * scale).softmax(0)
            answer[row, head] = weights @ values
    return answer
