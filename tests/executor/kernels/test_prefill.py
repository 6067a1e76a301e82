"""Chunked prefill over paged KV, and attention within spans, are plain attention."""

import pytest
import torch

from tests.executor.kernels.paged_case import (
    TOLERANCE,
    exact_attention,
    make_case,
    random_query,
)
from triptych.core.errors import InvariantBroken
from triptych.executor.kernels.attention_plan import plan_prefill, plan_varlen
from triptych.executor.kernels.reference import attention as reference

pytest.importorskip("triton", reason="no Triton for this platform")

from triptych.executor.kernels import prefill, varlen

FLOATS = list(TOLERANCE)


def check(answer, twin, exact, dtype):
    assert answer.dtype == dtype
    assert not answer.isnan().any()
    assert (answer.double() - twin.double()).abs().max() <= TOLERANCE[dtype]
    assert (answer.double().cpu() - exact).abs().max() <= TOLERANCE[dtype]


def check_prefill(
    device, rows, ends, *, group, dtype=torch.float32, stored=None, window=0, **store
):
    case = make_case(ends, device, dtype=stored or dtype, **store)
    kv_heads, head_dim = case.keys.shape[2:]
    query = random_query(sum(rows), kv_heads * group, head_dim, dtype, device)
    plan = plan_prefill(rows, ends, group=group, device=device)
    given = {"scale": case.scale, "window": window, **case.scales}
    answer = prefill.paged_prefill(query, *case.pages, plan, **given)
    twin = reference.paged_prefill(query, *case.pages, plan, **given)
    parts = [
        exact_attention(part, held, case.scale, end - len(part), window)
        for part, held, end in zip(query.split(rows), case.exact, ends, strict=True)
    ]
    check(answer, twin, torch.cat(parts), dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("group", [1, 7])
def test_prefill_equals_twin_and_arithmetic(device, dtype, group):
    check_prefill(device, [1, 17, 7], [1, 85, 7], group=group, dtype=dtype)


@pytest.mark.parametrize("rows", [64, 65, 130])
def test_tiles_end_where_sequences_do(device, rows):
    check_prefill(device, [rows, 3], [rows + 61, 259], group=1, kv_heads=1, head_dim=24)


@pytest.mark.parametrize("stored", [torch.int8, torch.float8_e4m3fn])
def test_quantised_kv_is_dequantised_by_token_and_head(device, stored):
    check_prefill(
        device, [17, 5], [40, 70], group=3, dtype=torch.float16, stored=stored, block_size=8
    )


@pytest.mark.parametrize("window", [1, 17, 70])
def test_window_hides_what_is_older(device, window):
    check_prefill(
        device, [90, 7], [170, 7], group=2, window=window, kv_heads=1, head_dim=16, block_size=64
    )


def test_bits_of_a_sequence_depend_neither_on_the_batch_nor_on_chunks(device):
    rows, ends = [5, 33, 1, 70, 7, 12, 3], [140, 33, 9, 131, 7, 100, 65]
    case = make_case(ends, device, head_dim=16, kv_heads=1)
    query = random_query(sum(rows), 2, 16, torch.float32, device)
    parts = query.split(rows)

    def bits(order, takes=None):
        """By sequence; ``takes`` = (first, behind the last) of its rows."""
        spans = [takes or (0, rows[index]) for index in order]
        counts = [last - first for first, last in spans]
        pairs = list(zip(order, spans, strict=True))
        seen = [ends[index] - rows[index] + last for index, (_, last) in pairs]
        plan = plan_prefill(counts, seen, group=2, device=device, deterministic=True)
        given = torch.cat([parts[index][first:last] for index, (first, last) in pairs])
        answer = prefill.paged_prefill(
            given, case.keys, case.values, case.table[order], plan, scale=case.scale
        )
        return answer.split(counts)

    whole = bits(list(range(7)))
    assert bits([0])[0].equal(whole[0]), "alone"
    assert bits([3, 0])[1].equal(whole[0]), "with one, in another order"
    for got, wanted in zip(bits(list(range(6, -1, -1))), reversed(whole), strict=True):
        assert got.equal(wanted), "with six, in another order"
    # Tiles of 64 rows. numpy's products depend on a row's place in its tile, a GPU's do not.
    cuts = [((0, 64), (64, 70))] + [((0, 29), (29, 30), (30, 70))] * (device.type == "cuda")
    for chunks in cuts:
        assert torch.cat([bits([3], takes)[0] for takes in chunks]).equal(whole[3]), "in chunks"


def test_a_prefill_plan_has_most_work_first_and_covers_each_pair_once():
    plan = plan_prefill([100, 3, 40], [100, 900, 400], group=3, device=torch.device("cpu"))
    assert plan.tile_rows == 128
    assert plan.tiles.tolist() == [[1, 0], [2, 0], [0, 256], [0, 128], [0, 0]]
    assert plan.row_starts.tolist() == [0, 100, 103, 143]
    assert plan_prefill([1], [900], group=7, device=torch.device("cpu")).tile_rows == 64
    for rows, ends in (([0], [5]), ([6], [5]), ([], []), ([1, 1], [5])):
        with pytest.raises(InvariantBroken):
            plan_prefill(rows, ends, group=1, device=torch.device("cpu"))


@pytest.mark.parametrize("op", [prefill.paged_prefill, reference.paged_prefill])
def test_a_prefill_that_does_not_fit_is_refused(device, op):
    case = make_case([5, 9], device)
    query = random_query(6, 4, 32, torch.float32, device)
    plan = plan_prefill([2, 4], [5, 9], group=2, device=device)
    good = {
        "query": query, "keys": case.keys, "values": case.values, "table": case.table,
        "plan": plan, "scale": 1.0,
    }  # fmt: skip
    op(**good)
    for bad in (
        {"table": case.table[:1]},
        {"plan": plan_prefill([2, 4], [5, 9], group=4, device=device)},
        {"query": query.bfloat16()},
        {"query": query[:5]},
        {"values": case.values.transpose(1, 3)},
        {"scale": -1.0},
    ):
        with pytest.raises(InvariantBroken):
            op(**(good | bad))


def check_varlen(device, lengths, head_dim, dtype=torch.float32, heads=2, deterministic=False):
    tokens = sum(lengths)
    qkv = random_query(tokens, 3 * heads, head_dim, dtype, device).unflatten(1, (3, heads))
    query, key, value = qkv.unbind(1)
    plan = plan_varlen(lengths, device=device, deterministic=deterministic)
    # The rows of another tensor's middle: no neighbour may be touched.
    wide = torch.full((tokens + 2, heads, head_dim), 7.0, dtype=dtype, device=device)
    scale = head_dim**-0.5
    answer = varlen.varlen_attention(query, key, value, plan, scale=scale, out=wide[1:-1])
    assert (wide[[0, -1]] == 7).all()
    twin = reference.varlen_attention(query, key, value, plan, scale=scale)
    exact = []
    for part in qkv.double().cpu().split(lengths):
        weights = torch.einsum("rhd,thd->hrt", part[:, 0], part[:, 1]) * scale
        exact.append(torch.einsum("hrt,thd->rhd", weights.softmax(-1), part[:, 2]))
    check(answer, twin, torch.cat(exact), dtype)
    return answer


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("head_dim", [72, 80])
def test_pictures_equal_twin_and_arithmetic(device, dtype, head_dim):
    check_varlen(device, [1, 150, 7, 17], head_dim, dtype)


@pytest.mark.parametrize("head_dim", [16, 64, 96])
def test_windows_share_tiles(device, head_dim):
    plan = plan_varlen([64, 32, 16, 64, 8], device=device)
    assert plan.tile_rows == 64
    assert sorted(plan.tiles.tolist()) == [
        [0, 64, 0, 64, 1], [64, 112, 64, 112, 2], [112, 176, 112, 176, 1], [176, 184, 176, 184, 1],
    ]  # fmt: skip
    check_varlen(device, [64, 32, 16, 64, 8], head_dim, heads=1)


def test_bits_of_a_span_do_not_depend_on_its_neighbours(device):
    lengths = [7, 70, 30, 9]
    qkv = random_query(sum(lengths), 3, 80, torch.float32, device).unflatten(1, (3, 1))

    def bits(order):
        parts = qkv.split(lengths)
        given = torch.cat([parts[index] for index in order]).unbind(1)
        sizes = [lengths[index] for index in order]
        plan = plan_varlen(sizes, device=device, deterministic=True)
        return varlen.varlen_attention(*given, plan, scale=0.1).split(sizes)

    whole = bits([0, 1, 2, 3])
    assert bits([2])[0].equal(whole[2])
    for got, wanted in zip(bits([3, 2, 1, 0]), reversed(whole), strict=True):
        assert got.equal(wanted)


@pytest.mark.parametrize("op", [varlen.varlen_attention, reference.varlen_attention])
def test_spans_that_do_not_fit_are_refused(device, op):
    query = random_query(9, 2, 32, torch.float32, device)
    plan = plan_varlen([4, 5], device=device)
    good = {"query": query, "key": query, "value": query, "plan": plan, "scale": 1.0}
    op(**good)
    for bad in (
        {"plan": plan_varlen([4, 4], device=device)},
        {"key": query[:, :1]},
        {"value": query.half()},
        {"key": query.transpose(1, 2).contiguous().transpose(1, 2)[:8]},
        {"scale": 0.0},
    ):
        with pytest.raises(InvariantBroken):
            op(**(good | bad))
    with pytest.raises(InvariantBroken):
        plan_varlen([3, 0], device=device)
