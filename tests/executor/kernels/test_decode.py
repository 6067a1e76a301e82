"""Decode over paged KV, alone and with shared prefixes, is attention over each sequence."""

import numpy as np
import pytest
import torch

from tests.executor.kernels.paged_case import (
    TOLERANCE,
    exact_attention,
    make_case,
    random_query,
)
from triptych.core.errors import InvariantBroken
from triptych.executor.kernels.attention_plan import plan_cascade
from triptych.executor.kernels.reference import attention as reference

pytest.importorskip("triton", reason="no Triton for this platform")

from triptych.executor.kernels import cascade, decode

FLOATS = list(TOLERANCE)


def exact_decode(query, case, window=0):
    """float64, sequence by sequence; 0 where there is no token."""
    answer = torch.zeros(query.shape, dtype=torch.float64)
    for row, held in enumerate(case.exact):
        if end := held.shape[1]:
            answer[row] = exact_attention(query[row, None], held, case.scale, end - 1, window)[0]
    return answer


def check(answer, twin, exact, dtype):
    assert answer.dtype == dtype
    assert not answer.isnan().any()
    assert (answer.double() - twin.double()).abs().max() <= TOLERANCE[dtype]
    assert (answer.double().cpu() - exact).abs().max() <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("group", [1, 7])
def test_decode_equals_twin_and_arithmetic(device, dtype, group):
    case = make_case([1, 0, 17, 259], device, dtype=dtype)
    query = random_query(4, 2 * group, 32, dtype, device)
    out = torch.full((4, 2 * group, 64), 7.0, dtype=dtype, device=device)[:, :, :32]
    answer = decode.paged_decode(query, *case.pages, case.ends, scale=case.scale, out=out)
    assert answer is out
    twin = reference.paged_decode(query, *case.pages, case.ends, scale=case.scale)
    check(answer, twin, exact_decode(query, case), dtype)
    assert (answer[1] == 0).all(), "a row that pads is answered with zeros"


@pytest.mark.parametrize("stored", [torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_quantised_kv_is_dequantised_by_token_and_head(device, stored, dtype):
    case = make_case([7, 70], device, dtype=stored, block_size=32)
    query = random_query(2, 6, 32, dtype, device)
    given = {"scale": case.scale, **case.scales}
    answer = decode.paged_decode(query, *case.pages, case.ends, **given)
    twin = reference.paged_decode(query, *case.pages, case.ends, **given)
    check(answer, twin, exact_decode(query, case), dtype)


@pytest.mark.parametrize("window", [1, 17, 100])
@pytest.mark.parametrize("block_size", [8, 64])
def test_window_hides_what_is_older(device, window, block_size):
    case = make_case([5, 18, 131], device, block_size=block_size, head_dim=24, kv_heads=1)
    query = random_query(3, 2, 24, torch.float32, device)
    given = {"scale": case.scale, "window": window}
    answer = decode.paged_decode(query, *case.pages, case.ends, **given)
    twin = reference.paged_decode(query, *case.pages, case.ends, **given)
    check(answer, twin, exact_decode(query, case, window), torch.float32)


@pytest.mark.parametrize("window", [0, 600])
def test_long_contexts_are_split_and_merged(device, window):
    case = make_case([1100, 1, 513], device, head_dim=16, kv_heads=1, block_size=64)
    assert decode.num_splits(case.table.shape[1] * 64, 3, device) > 3
    query = random_query(3, 2, 16, torch.float32, device)
    for is_fixed in (False, True):
        given = {"scale": case.scale, "window": window, "deterministic": is_fixed}
        answer = decode.paged_decode(query, *case.pages, case.ends, **given)
        twin = reference.paged_decode(query, *case.pages, case.ends, **given)
        check(answer, twin, exact_decode(query, case, window), torch.float32)


def test_bits_of_a_sequence_do_not_depend_on_the_batch(device):
    case = make_case(
        [1100, 513, 1, 700, 17, 40, 512], device, head_dim=16, kv_heads=1, block_size=64
    )
    query = random_query(7, 2, 16, torch.float32, device)

    def bits(rows, blocks=0):
        table = case.table[rows]
        width = blocks or table.shape[1]
        return decode.paged_decode(
            query[rows], case.keys, case.values, table[:, :width].contiguous(), case.ends[rows],
            scale=case.scale, deterministic=True,
        )  # fmt: skip

    whole = bits(list(range(7)))
    assert bits([0]).equal(whole[[0]]), "alone"
    assert bits([1, 0]).equal(whole[[1, 0]]), "with one, in another order"
    assert bits(list(range(6, -1, -1))).equal(whole.flip(0)), "with six, in another order"
    assert bits([6, 4, 2], blocks=8).equal(whole[[6, 4, 2]]), "in one split, without a merge"


def test_splits_fill_the_device_and_no_more(device):
    assert decode.num_splits(8192, 1, device) == 32, "not below the least length"
    assert decode.num_splits(512, 4096, device) == 1
    assert decode.num_splits(32768, 4096, device) == 8, "none longer than the longest"
    assert decode.num_splits(1 << 20, 1, device) == 2 * decode.processors(device)


def test_no_value_of_a_tensor_is_read_on_the_host(device, monkeypatch):
    """The launch can be captured in a graph: what it does depends on shapes alone."""
    case = make_case([600, 17], device, head_dim=16, kv_heads=1)
    query = random_query(2, 2, 16, torch.float32, device)
    wanted = reference.paged_decode(query, *case.pages, case.ends, scale=case.scale)
    plan = plan_cascade(
        case.table.cpu().numpy(), case.ends.tolist(), block_size=16, group=2, device=device
    )

    def fail(*args, **kwargs):
        raise AssertionError("the host waits for the device")

    with monkeypatch.context() as patch:
        for name in ("item", "tolist", "numpy", "__bool__", "__int__", "__index__"):
            patch.setattr(torch.Tensor, name, fail)
        answer = decode.paged_decode(query, *case.pages, case.ends, scale=case.scale)
        again = cascade.cascade_decode(query, *case.pages, case.ends, plan, scale=case.scale)
    assert (answer - wanted).abs().max() <= TOLERANCE[torch.float32]
    assert (again - wanted).abs().max() <= TOLERANCE[torch.float32]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_captured_graph_follows_lengths(device):
    case = make_case([600, 17, 300], device, dtype=torch.bfloat16, head_dim=128)
    query = random_query(3, 14, 128, torch.bfloat16, device)
    out = torch.empty(3, 14, 128, dtype=torch.bfloat16, device=device)
    decode.paged_decode(query, *case.pages, case.ends, scale=case.scale, out=out)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        decode.paged_decode(query, *case.pages, case.ends, scale=case.scale, out=out)
    case.ends.copy_(torch.tensor([599, 0, 1]))
    graph.replay()
    twin = reference.paged_decode(query, *case.pages, case.ends, scale=case.scale)
    assert (out - twin).abs().max() <= TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_cascade_equals_decode_and_arithmetic(device, dtype):
    ends = [100, 70, 65, 79, 7, 0]
    case = make_case(ends, device, dtype=dtype, shared=(2, 4))
    kind = torch.float16 if dtype == torch.int8 else dtype
    query = random_query(6, 6, 32, kind, device)
    plan = plan_cascade(
        case.table.cpu().numpy(), ends, block_size=16, group=3, device=device, least=64
    )
    assert plan.skips.tolist() == [64, 64, 64, 64, 0, 0]
    assert len(plan.tiles) == 2
    given = {"scale": case.scale, **case.scales}
    answer = cascade.cascade_decode(query, *case.pages, case.ends, plan, **given)
    check(
        answer,
        reference.cascade_decode(query, *case.pages, case.ends, plan, **given),
        exact_decode(query, case),
        kind,
    )
    plain = decode.paged_decode(query, *case.pages, case.ends, **given)
    assert (answer - plain).abs().max() <= TOLERANCE[kind]


def test_cascade_of_several_tiles_and_prefixes_that_end_a_sequence(device):
    """Nineteen rows share one block; for some of them it is all they have."""
    ends = [16 if row % 3 else 17 + row for row in range(19)]
    case = make_case(ends, device, head_dim=16, kv_heads=1, shared=(19, 1))
    query = random_query(19, 8, 16, torch.float32, device)
    plan = plan_cascade(
        case.table.cpu().numpy(), ends, block_size=16, group=8, device=device, least=1
    )
    assert (plan.tile_rows, len(plan.tiles)) == (128, 2)
    answer = cascade.cascade_decode(query, *case.pages, case.ends, plan, scale=case.scale)
    twin = reference.cascade_decode(query, *case.pages, case.ends, plan, scale=case.scale)
    check(answer, twin, exact_decode(query, case), torch.float32)


def test_rows_join_a_group_while_that_saves_reads():
    table = np.array(
        [
            [1, 2, 3, 4, 5, 6],
            [9, 9, 9, 9, 9, 9],
            [1, 2, 3, 4, 7, 8],
            [1, 2, 3, 4, 5, 0],
            [1, 8, 8, 8, 8, 8],
        ],
        dtype=np.int32,
    )
    given = {"block_size": 16, "group": 1, "device": torch.device("cpu"), "least": 16}
    plan = plan_cascade(table, [96, 96, 96, 85, 96], **given)
    assert plan.members.tolist() == [3, 0, 2], "the last would cost the others three blocks"
    assert plan.prefix_ends.tolist() == [64]
    assert plan.group_starts.tolist() == [0, 3]
    assert plan.skips.tolist() == [64, 0, 64, 64, 0]
    assert plan.longest == 64
    alone = plan_cascade(table[:2], [96, 96], **given)
    assert (len(alone.tiles), len(alone.members), alone.longest) == (0, 0, 0)
    with pytest.raises(InvariantBroken):
        plan_cascade(table, [96, 96, 112, 85, 96], **given)


@pytest.mark.parametrize("op", [decode.paged_decode, reference.paged_decode])
def test_what_does_not_fit_is_refused(device, op):
    case = make_case([5, 9], device)
    query = random_query(2, 4, 32, torch.float32, device)
    good = {
        "query": query, "keys": case.keys, "values": case.values, "table": case.table,
        "ends": case.ends, "scale": 1.0,
    }  # fmt: skip
    op(**good)
    for bad in (
        {"query": query[:, :3]},
        {"query": query.half()},
        {"query": query[:, :, :16]},
        {"query": query.transpose(1, 2)},
        {"keys": case.keys.to(torch.int8), "values": case.values.to(torch.int8)},
        {"keys": case.keys[:, :4], "values": case.values[:, :4]},
        {"values": case.values[:, :, :1]},
        {"key_scales": torch.ones(case.keys.shape[:3], device=device)},
        {"table": case.table.long()},
        {"ends": case.ends[:1]},
        {"ends": case.ends.long()},
        {"out": torch.empty(2, 4, 31, device=device)},
        {"scale": 0.0},
    ):
        with pytest.raises(InvariantBroken):
            op(**(good | bad))
