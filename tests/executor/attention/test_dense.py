"""Planned, paged, padded attention is plain attention over each sequence by itself."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.core.errors import InvariantBroken
from triptych.core.layout import Layout
from triptych.executor.attention.dense import PagedAttention
from triptych.executor.attention.plan import Planner, Span
from triptych.executor.ranks import Share

HEADS, SIZE, LAYERS = 2, 6, 3


def naive(query, keys, values, start: int):
    """(tokens, heads * size) with an explicit softmax, head by head."""
    group = query.shape[1] // HEADS
    outputs = []
    for index, row in enumerate(query):
        seen = start + index + 1
        heads = []
        for head, vector in enumerate(row):
            scores = keys[:seen, head // group] @ vector * SIZE**-0.5
            heads.append(scores.softmax(0) @ values[:seen, head // group])
        outputs.append(torch.cat(heads))
    return torch.stack(outputs)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), min_size=1, max_size=7),
    st.sampled_from([1, 3, 16]),
    st.sampled_from([1, 3]),
    st.integers(0, LAYERS - 1),
    st.sampled_from([Share(), Share(0, 2), Share(1, 2), Share(2, 3)]),
)
def test_equals_plain_attention(lengths, block_size, group, layer, share):
    torch.manual_seed(1)
    lengths = sorted((start, 1) for start, count in lengths if count < 5) + [
        (start, count) for start, count in lengths if count >= 5
    ]
    needed = sum(-(-(start + count) // block_size) for start, count in lengths)
    free = random.Random(2).sample(range(needed + 3), needed)
    shape = (needed + 3, share.num_ranks, LAYERS, 2, block_size, HEADS, SIZE)
    runs = torch.full(shape, float("nan"))
    store = runs[:, share.rank]
    spans, histories = [], []
    # What nobody wrote is NaN: an answer that it touches shows it. A step that goes on in a block
    # finds the rest of it cleared by the step that began it.
    for start, count in lengths:
        blocks = tuple(free.pop() for _ in range(-(-(start + count) // block_size)))
        spans.append(Span(start, start + count, blocks))
        past = torch.randn(2, start + count, HEADS, SIZE)
        for position in range(start):
            block, offset = blocks[position // block_size], position % block_size
            if offset == 0:
                store[block] = 0
            store[block, layer, :, offset] = past[:, position]
        histories.append(past)
    fresh = torch.cat(
        [past[:, span.start :] for past, span in zip(histories, spans, strict=True)], dim=1
    )
    query = torch.randn(fresh.shape[1], HEADS * group, SIZE)
    layout = Layout("kv", "tiny", "float32", tuple(store.shape[1:]), block_size, share.num_ranks)
    plan = Planner(layout, "cpu").plan(spans)
    attention = PagedAttention(runs.flatten(0, 1), share)
    attention.begin(plan)
    qkv = torch.cat((query, fresh[0], fresh[1]), dim=1).flatten(1)
    unturned = torch.ones(len(qkv), SIZE), torch.zeros(len(qkv), SIZE)
    answer = attention.run(qkv, unturned, layer, plan)
    row = 0
    for span, past in zip(spans, histories, strict=True):
        count = span.end - span.start
        wanted = naive(query[row : row + count], past[0], past[1], span.start)
        assert (answer[row : row + count] - wanted).abs().max() < 1e-5
        for position in range(span.start, span.end):
            held = store[span.blocks[position // block_size], layer, :, position % block_size]
            assert held.equal(past[:, position])
        row += count
    others = [rank for rank in range(share.num_ranks) if rank != share.rank]
    assert runs[:, others].isnan().all(), "runs of other ranks are not ours"


def test_long_and_short_contexts_are_not_padded_together():
    layout = Layout("kv", "tiny", "float32", (1, 2, 4, 1, 2), 4)
    spans = [Span(end - 1, end, tuple(range(-(-end // 4)))) for end in (3, 30, 33, 60, 500, 900)]
    plan = Planner(layout, "cpu").plan(spans)
    assert [(group.first, group.last) for group in plan.decode] == [(0, 2), (2, 4), (4, 6)]
    assert [tuple(group.mask.shape) for group in plan.decode] == [
        (2, 1, 1, 32),
        (2, 1, 1, 60),
        (2, 1, 1, 900),
    ]


@pytest.mark.parametrize("span", [Span(0, 9, (1, 2)), Span(8, 9, (1, 2)), Span(3, 3, (1,))])
def test_a_short_table_is_a_bug(span: Span):
    layout = Layout("kv", "tiny", "float32", (1, 2, 4, 1, 2), 4)
    with pytest.raises(InvariantBroken):
        Planner(layout, "cpu").plan([span])
