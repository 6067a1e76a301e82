import random

import pytest
import torch

from triptych.core.errors import InvariantBroken
from triptych.executor.attention.selectors.rules import Rules
from triptych.executor.attention.selectors.view import VisualSpan
from triptych.executor.attention.selectors.xattention import XAttention
from triptych.executor.kernels.block_mask import BlockMask, packed
from triptych.executor.kernels.reference import sparse as twin
from triptych.executor.kernels.sparse_prefill import sparse_prefill

TOLERANCE = {
    torch.float32: 2e-6,  # a different order of the same sums
    torch.float16: 2e-3,  # weights are rounded to the query's dtype before they meet the values
    torch.bfloat16: 1.6e-2,  # the same, with three bits less
}
"""Absolute, for values of unit variance."""


def case(device, lengths, ends, *, heads=2, kv_heads=1, head_dim=32, block_size=16,
         dtype=torch.float32, seed=0):  # fmt: skip
    """Inputs of packed sequences over one store of three layers, NaN wherever nobody owns."""
    draw = torch.Generator().manual_seed(seed)
    rng = random.Random(seed)
    sizes = [-(-end // block_size) for end in ends]
    names = list(range(sum(sizes) + 2))
    rng.shuffle(names)
    table = torch.full((len(ends), max(sizes) + 1), 2**30, dtype=torch.int32)
    shape = (len(names), 3, 2, block_size, kv_heads, head_dim)
    store = torch.full(shape, float("nan"), dtype=dtype)
    for line, size, end in zip(table, sizes, ends, strict=True):
        own = [names.pop() for _ in range(size)]
        line[:size] = torch.tensor(own)
        for number, name in enumerate(own):
            used = min(block_size, end - number * block_size)
            fresh = torch.randn(2, used, kv_heads, head_dim, generator=draw)
            store[name, 1, :, :used] = fresh.to(dtype)
    query = torch.randn(sum(lengths), heads, head_dim, generator=draw).to(dtype)
    starts = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    store = store.to(device)
    return {
        "query": query.to(device),
        "keys": store[:, 1, 0],
        "values": store[:, 1, 1],
        "table": table.to(device),
        "row_starts": starts.to(device),
        "ends": torch.tensor(ends, dtype=torch.int32, device=device),
    }


def causal(length, end, tile_q, tile_k):
    """bool (query tiles, key tiles): where any row sees any key."""
    last = torch.arange(0, length, tile_q) + tile_q - 1
    last = last.clamp_max(length - 1) + end - length
    return torch.arange(0, end, tile_k) <= last[:, None]


def random_mask(device, lengths, ends, heads, tile_q, tile_k, share=0.5, seed=1):
    draw = torch.Generator().manual_seed(seed)
    masks = []
    for length, end in zip(lengths, ends, strict=True):
        seen = causal(length, end, tile_q, tile_k)
        keep = (torch.rand(heads, *seen.shape, generator=draw) < share) & seen
        masks.append(BlockMask.of(keep.to(device), tile_q, tile_k))
    return packed(masks)


def exact(args, mask, scale):
    """Tile by tile in float64."""
    query, table = args["query"].double().cpu(), args["table"].cpu().long()
    keys, values = args["keys"].double().cpu(), args["values"].double().cpu()
    starts, ends = args["row_starts"].tolist(), args["ends"].tolist()
    result, tile = torch.zeros_like(query), 0
    heads, size = query.shape[1], keys.shape[1]
    group, mask_group = heads // keys.shape[2], heads // mask.counts.shape[0]
    for index, end in enumerate(ends):
        for first in range(starts[index], starts[index + 1], mask.tile_q):
            rows = torch.arange(first, min(first + mask.tile_q, starts[index + 1]))
            last = rows - starts[index + 1] + end
            for head in range(heads):
                count = mask.counts[head // mask_group, tile]
                kept = mask.indices[head // mask_group, tile, :count].cpu()
                seen = (kept[:, None] * mask.tile_k + torch.arange(mask.tile_k)).flatten()
                seen = seen[seen < end]
                block, offset = table[index][seen // size], seen % size
                k, v = (one[block, offset, head // group] for one in (keys, values))
                scores = query[rows, head] @ k.T * scale
                weights = scores.exp() * (seen <= last[:, None])
                total = weights.sum(1, keepdim=True)
                result[rows, head] = weights @ v / total.clamp_min(1e-300)
            tile += 1
    return result


def close(mine, wanted, dtype):
    error = (mine.double().cpu() - wanted.double().cpu()).abs().max().item()
    assert error < TOLERANCE[dtype], error


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize(
    ("lengths", "ends", "tile_q", "tile_k", "block_size", "head_dim"),
    [
        ([7], [7], 16, 16, 16, 32),
        ([1, 17], [1, 90], 16, 16, 8, 20),
        ([33], [259], 32, 16, 16, 32),
        ([20], [131], 16, 32, 32, 32),
        ([19, 5], [70, 33], 16, 16, 64, 64),
    ],
)
def test_kernel_is_its_twin_and_exact(
    device, dtype, lengths, ends, tile_q, tile_k, block_size, head_dim
):
    args = case(device, lengths, ends, head_dim=head_dim, block_size=block_size, dtype=dtype)
    mask = random_mask(device, lengths, ends, 2, tile_q, tile_k)
    scale = head_dim**-0.5
    mine = sparse_prefill(**args, blocks=mask, scale=scale)
    assert mine.dtype == dtype
    close(mine, twin.sparse_prefill(**args, blocks=mask, scale=scale), dtype)
    close(mine, exact(args, mask, scale), dtype)


@pytest.mark.parametrize("mask_heads", [1, 2])
def test_heads_of_a_group_may_share_a_mask(device, mask_heads):
    args = case(device, [40], [75], heads=4, kv_heads=2)
    mask = random_mask(device, [40], [75], mask_heads, 16, 16)
    mine = sparse_prefill(**args, blocks=mask, scale=0.2)
    close(mine, exact(args, mask, 0.2), torch.float32)


@pytest.mark.parametrize("kind", [torch.int8, torch.float8_e4m3fn], ids=str)
def test_quantised_keys_and_values(device, kind):
    args = case(device, [20, 9], [50, 9], heads=2, kv_heads=2)
    scales = {}
    for name in ("keys", "values"):
        plain = args[name].float().nan_to_num(0.0)
        limit = 127 if kind == torch.int8 else 448
        scale = plain.abs().amax(-1).clamp_min(1e-6) / limit
        stored = plain / scale[..., None]
        args[name] = (stored.round() if kind == torch.int8 else stored).to(kind)
        scales[f"{name.removesuffix('s')}_scales"] = scale
    mask = random_mask(device, [20, 9], [50, 9], 2, 16, 16)
    mine = sparse_prefill(**args, **scales, blocks=mask, scale=0.2)
    close(mine, twin.sparse_prefill(**args, **scales, blocks=mask, scale=0.2), torch.float32)


def test_strided_query_and_given_output(device):
    args = case(device, [20], [52], heads=2)
    mask = random_mask(device, [20], [52], 2, 16, 16)
    plain = sparse_prefill(**args, blocks=mask, scale=0.2)
    wide = torch.randn(20, 5, 40, device=device)
    wide[:, 1:3, :32] = args["query"]
    args["query"] = wide[:, 1:3, :32]
    out = torch.full((20, 4, 32), 7.0, device=device)
    given = sparse_prefill(**args, blocks=mask, scale=0.2, out=out[:, ::2])
    assert given.data_ptr() == out.data_ptr()
    assert torch.equal(out[:, ::2], plain)
    assert (out[:, 1::2] == 7.0).all()


def test_a_sequence_does_not_see_its_batch(device):
    lengths, ends = [20, 33, 5], [52, 33, 70]
    whole = case(device, lengths, ends)
    mask = random_mask(device, lengths, ends, 2, 16, 16)
    together = sparse_prefill(**whole, blocks=mask, scale=0.2)
    alone = dict(whole)
    alone["query"] = whole["query"][20:53]
    alone["table"], alone["ends"] = whole["table"][1:2], whole["ends"][1:2]
    alone["row_starts"] = torch.tensor([0, 33], dtype=torch.int32, device=device)
    own = BlockMask(mask.counts[:, 2:5], mask.indices[:, 2:5], 16, 16)
    assert torch.equal(sparse_prefill(**alone, blocks=own, scale=0.2), together[20:53])


def test_a_row_without_keys_is_zero_and_full_lists_are_plain_attention(device):
    args = case(device, [20], [52])
    keep = causal(20, 52, 16, 16)[None].clone()
    full = sparse_prefill(**args, blocks=BlockMask.of(keep.to(device), 16, 16), scale=0.2)
    close(full, exact(args, BlockMask.of(keep, 16, 16), 0.2), torch.float32)
    keep[:, 1] = False
    some = sparse_prefill(**args, blocks=BlockMask.of(keep.to(device), 16, 16), scale=0.2)
    assert torch.equal(some[:16], full[:16])
    assert (some[16:] == 0).all()


def test_text_rows_answer_as_under_full_lists_bit_for_bit(device):
    args = case(device, [60], [60], kv_heads=2)
    keys = args["keys"][args["table"][0, :4].long()].flatten(0, 1)[:60]
    spans = [VisualSpan(6, 42, (1, 6, 6))]  # tiles 0 and 2, 3 hold text, tile 1 does not
    results = []
    for tau in (0.2, 1.0):
        selector = XAttention(tau, rules=Rules(16, 16, min_tokens=0, sink_tiles=0))
        mask = selector.select(args["query"], keys, spans, scale=3.0)
        results.append(sparse_prefill(**args, blocks=mask, scale=3.0))
    thin, whole = results
    is_text = torch.ones(60, dtype=torch.bool)
    is_text[16:32] = False
    assert torch.equal(thin[is_text], whole[is_text])
    assert not torch.equal(thin[~is_text], whole[~is_text])


def test_an_empty_sequence_among_others(device):
    lengths, ends = [20, 0, 9], [52, 16, 30]
    args = case(device, lengths, ends)
    parts = [(20, 52), (9, 30)]
    mask = packed([BlockMask.of(causal(*one, 16, 16)[None].to(device), 16, 16) for one in parts])
    mine = sparse_prefill(**args, blocks=mask, scale=0.2)
    close(mine, twin.sparse_prefill(**args, blocks=mask, scale=0.2), torch.float32)
    none = BlockMask(mask.counts[:, :0], mask.indices[:, :0], 16, 16)
    empty = args | {"query": args["query"][:0], "row_starts": args["row_starts"] * 0}
    assert sparse_prefill(**empty, blocks=none, scale=0.2).shape == (0, 2, 32)


def test_lists_are_tables_and_back():
    keep = torch.rand(3, 5, 9, generator=torch.Generator().manual_seed(0)) < 0.4
    mask = BlockMask.of(keep, 16, 16)
    assert torch.equal(mask.keep(9 * 16), keep)
    assert torch.equal(mask.keep(7 * 16 - 3), keep[..., :7])
    for counts, lists in zip(mask.counts[0], mask.indices[0], strict=True):
        assert lists[:counts].tolist() == sorted(set(lists[:counts].tolist()))
    with pytest.raises(InvariantBroken, match="cannot be packed"):
        packed([mask, BlockMask.of(keep, 16, 32)])


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"query": lambda q: q.double()}, "dtype"),
        ({"query": lambda q: q[:, :, :16]}, "head_dim"),
        ({"query": lambda q: q.transpose(0, 2).contiguous().transpose(0, 2)}, "not contiguous"),
        ({"values": lambda v: v[..., :16]}, "differ"),
        ({"ends": lambda e: e.long()}, "int32"),
        ({"table": lambda t: t[:0]}, "disagree"),
        ({"out": lambda o: o[:1]}, "out is not"),
        ({"keys": lambda k: k.to(torch.int8), "values": lambda v: v.to(torch.int8)}, "scales"),
    ],
)
def test_what_does_not_fit_is_refused(device, change, word):
    args = case(device, [20], [52])
    args["out"] = torch.empty(20, 2, 32, device=device)
    mask = random_mask(device, [20], [52], 2, 16, 16)
    for name, how in change.items():
        args[name] = how(args[name])
    with pytest.raises(InvariantBroken, match=word):
        sparse_prefill(**args, blocks=mask, scale=0.2)


@pytest.mark.parametrize(("heads", "tile"), [(3, 16), (2, 8), (2, 24)])
def test_masks_that_do_not_fit_are_refused(device, heads, tile):
    args = case(device, [20], [52])
    mask = random_mask(device, [20], [52], heads, tile, tile)
    with pytest.raises(InvariantBroken, match="mask heads|tiles"):
        sparse_prefill(**args, blocks=mask, scale=0.2)
