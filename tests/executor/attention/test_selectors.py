"""Selectors against brute force on small attention, and what no selector may break."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.core.errors import InvariantBroken
from triptych.executor.attention.selectors.block_filter import BlockFilter
from triptych.executor.attention.selectors.lags import diagonal_tiles, lag_mass
from triptych.executor.attention.selectors.local_and_history import LocalAndHistory
from triptych.executor.attention.selectors.modality import Modality
from triptych.executor.attention.selectors.rules import (
    Rules,
    density,
    recall,
    smallest_cover,
)
from triptych.executor.attention.selectors.vertical_slash import VerticalSlash
from triptych.executor.attention.selectors.view import View, VisualSpan
from triptych.executor.attention.selectors.xattention import XAttention
from triptych.executor.kernels.reference.sparse import sparse_prefill

TILE = 16
RULES = Rules(TILE, TILE, min_tokens=0)
SELECTORS = [
    XAttention(stride=8, rules=RULES),
    XAttention(tau=0.5, stride=16, rules=Rules(2 * TILE, TILE, min_tokens=0, is_shared=True)),
    BlockFilter(rules=RULES),
    BlockFilter(tau=0.3, similarity=-1.0, rules=Rules(TILE, 2 * TILE, min_tokens=0)),
    VerticalSlash(columns=3, diagonals=5, probes=8, rules=RULES),
    Modality(columns=3, diagonals=5, probes=8, band=2, grid_share=0.1, rules=RULES),
    LocalAndHistory(local=48, share=0.25, rules=RULES),
    LocalAndHistory(local=32, share=0.3, history="strided", rules=RULES),
]


@st.composite
def prompts(draw):
    """A chunk's query, all keys and spans: pieces of text and of pictures, videos among them."""
    spans, end = [], 0
    for _ in range(draw(st.integers(1, 4))):
        end += draw(st.integers(0, 40))
        grid = draw(st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 9)))
        spans.append(VisualSpan(end, end + math.prod(grid), grid))
        end = spans[-1].end
    if draw(st.booleans()):
        end += draw(st.integers(0, 40))
    else:  # a chunk may end inside a picture
        end = draw(st.integers(spans[-1].start + 1, spans[-1].end))
    rows = draw(st.integers(1, end))
    dice = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    query = 2 * torch.randn(rows, 4, 8, generator=dice)
    return query, torch.randn(end, 2, 8, generator=dice), spans


def keep_of(selector, query, keys, spans):
    mask = selector.select(query, keys, spans, scale=0.35)
    return mask, mask.keep(len(keys))


@pytest.mark.parametrize("selector", SELECTORS, ids=lambda one: type(one).__name__)
@settings(max_examples=25, deadline=None)
@given(prompt=prompts())
def test_what_no_selector_may_break(selector, prompt):
    query, keys, spans = prompt
    mask, keep = keep_of(selector, query, keys, spans)
    tile_q, tile_k = selector.rules.tile_q, selector.rules.tile_k
    view = View(query, keys, spans, 0.35, tile_q, tile_k)
    visual = {at for span in spans for at in range(span.start, span.end)}
    start = len(keys) - len(query)
    assert keep.shape == (2 if selector.rules.is_shared else 4, *view.causal.shape)
    for row in range(len(query)):
        position, tile = start + row, row // tile_q
        assert keep[:, tile, position // tile_k].all(), "its own key"
        assert keep[:, tile, 0].all(), "the sink"
        if position not in visual:
            assert keep[:, tile, : position // tile_k + 1].all(), "text is dense"
    assert not (keep & ~view.causal).any()
    assert torch.equal(mask.counts.long(), keep.sum(-1))
    share = density(mask, len(query), len(keys))
    assert 0 < share <= 1
    assert share == pytest.approx(keep.sum().item() / (view.causal.sum().item() * len(keep)))
    kept = recall(mask, view, torch.arange(len(query)))
    assert ((kept > 0) & (kept < 1 + 1e-5)).all()


@settings(max_examples=40, deadline=None)
@given(prompts(), st.floats(0.05, 1.0), st.floats(0.05, 1.0))
def test_a_greater_tau_keeps_what_a_smaller_one_keeps(prompt, one, other):
    low, high = sorted((one, other))
    for kind in (XAttention, BlockFilter):
        less = keep_of(kind(tau=low, rules=RULES), *prompt)[1]
        more = keep_of(kind(tau=high, rules=RULES), *prompt)[1]
        assert not (less & ~more).any()


def test_the_smallest_cover_is_the_smallest():
    weights = torch.tensor([[0.1, 0.4, 0.0, 0.3, 0.2]])
    assert smallest_cover(weights, 0.4).tolist() == [[False, True, False, False, False]]
    assert smallest_cover(weights, 0.75).tolist() == [[False, True, False, True, True]]
    assert smallest_cover(weights, 1.0).tolist() == [[True, True, False, True, True]]


def test_short_prompts_are_dense_and_text_alone_is_dense():
    query, keys = torch.randn(40, 4, 8), torch.randn(60, 2, 8)
    for selector in SELECTORS:
        span = [VisualSpan(0, 60, (1, 6, 10))]
        short = type(selector)(rules=Rules(TILE, TILE, min_tokens=61))
        assert density(short.select(query, keys, span, scale=0.3), 40, 60) == 1.0
        mask = selector.select(query, keys, [], scale=0.3)
        assert density(mask, 40, 60) == 1.0


def test_heads_of_a_group_share_what_any_of_them_keeps():
    prompt = torch.randn(90, 4, 8) * 2, torch.randn(90, 2, 8), [VisualSpan(0, 90, (1, 9, 10))]
    own = keep_of(XAttention(tau=0.4, rules=RULES), *prompt)[1]
    shared_rules = Rules(TILE, TILE, min_tokens=0, is_shared=True)
    shared = keep_of(XAttention(tau=0.4, rules=shared_rules), *prompt)[1]
    assert torch.equal(shared, own.view(2, 2, *own.shape[1:]).any(1))
    assert not torch.equal(own[0], own[1])


def planted(rows=160, *, text=8):
    """Weak noise, one span of pictures behind a few tokens of text."""
    dice = torch.Generator().manual_seed(3)
    query, keys = (0.1 * torch.randn(rows, 1, 64, generator=dice) for _ in range(2))
    frame = (rows - text) // 4
    return query, keys, [VisualSpan(text, rows, (4, 1, frame))]


@pytest.mark.parametrize(
    "selector",
    [
        XAttention(tau=0.6, stride=8, rules=RULES),
        BlockFilter(tau=0.5, similarity=-1.0, rules=RULES),
        VerticalSlash(columns=1, diagonals=1, rules=RULES),
        Modality(columns=1, diagonals=1, band=1, rules=RULES),
        LocalAndHistory(local=32, share=0.2, rules=RULES),
    ],
    ids=lambda one: type(one).__name__,
)
def test_a_planted_column_is_found(selector):
    query, keys, spans = planted()
    query[..., 0], keys[50, :, 0] = 4.0, 16.0
    mask, keep = keep_of(selector, query, keys, spans)
    assert keep[:, 4:, 3].all(), "the tile of column 50"
    view = View(query, keys, spans, 0.35, TILE, TILE)
    assert recall(mask, view, torch.arange(64, 160)).min() > 0.95
    assert density(mask, 160, 160) < 0.7


def diagonal(lag):
    """Random codes: each row agrees with the key ``lag`` before it, and with no other."""
    query, keys, spans = planted()
    dice = torch.Generator().manual_seed(5)
    codes = torch.nn.functional.normalize(torch.randn(160, 64, generator=dice), dim=1) * 8
    keys[:, 0], query[lag:, 0] = codes, codes[:-lag]
    return query, keys, spans


@pytest.mark.parametrize(
    "selector",
    [XAttention(tau=0.8, stride=8, rules=RULES), VerticalSlash(1, 2, rules=RULES)],
    ids=lambda one: type(one).__name__,
)
def test_a_planted_diagonal_is_found(selector):
    query, keys, spans = diagonal(71)
    mask, _ = keep_of(selector, query, keys, spans)
    view = View(query, keys, spans, 0.35, TILE, TILE)
    assert recall(mask, view, torch.arange(71, 160)).mean() > 0.9
    assert density(mask, 160, 160) < 0.8


def test_antidiagonals_miss_a_sharp_diagonal_of_even_lag():
    """Row plus key is odd on each of them, so that the lag is: a limit that the page tells."""
    query, keys, spans = diagonal(70)
    mask, _ = keep_of(XAttention(tau=0.8, stride=8, rules=RULES), query, keys, spans)
    view = View(query, keys, spans, 0.35, TILE, TILE)
    assert recall(mask, view, torch.arange(70, 160)).mean() < 0.75


def test_a_grid_is_found_by_its_period_and_phase():
    query, keys, spans = planted(408, text=8)  # four frames of 100
    place = (torch.arange(408) - 8) % 100
    angle = place[:, None] * (2 * math.pi / 100) * torch.arange(1, 33)
    waves = torch.cat((angle.cos(), angle.sin()), 1)
    keys[:, 0] = waves
    query[:, 0] = waves.roll(7, 0)  # looks at the place seven tokens before its own
    selector = Modality(columns=1, diagonals=1, band=3, rules=RULES)
    view = View(query, keys, spans, 1.0, TILE, TILE)
    assert selector.periods(view) == [100]
    rows = view.probes(64, is_visual=True)
    share, phase = selector.fit(lag_mass(view.weights(rows), rows), 100, TILE)
    assert abs(phase.item() - 7) <= 1
    assert share.item() > 0.9
    mask = selector.select(query, keys, spans, scale=1.0)
    assert recall(mask, view, torch.arange(200, 408)).min() > 0.9
    assert density(mask, 408, 408) < 0.6
    plain = VerticalSlash(columns=1, diagonals=1, rules=RULES).select(query, keys, spans, scale=1.0)
    assert recall(plain, view, torch.arange(200, 408)).mean() < 0.7, "one diagonal is no grid"


def test_periods_come_from_frames_pictures_and_wide_rows():
    spans = [
        VisualSpan(0, 120, (3, 2, 20)),
        VisualSpan(130, 190, (1, 2, 30)),
        VisualSpan(200, 260, (1, 2, 30)),
        VisualSpan(265, 274, (1, 3, 3)),
    ]
    view = View(torch.zeros(280, 1, 4), torch.zeros(280, 1, 4), spans, 1.0, TILE, TILE)
    assert Modality(band=2).periods(view) == [40, 30, 20, 70]


def test_antidiagonals_by_hand():
    query, keys = torch.randn(40, 2, 8), torch.randn(70, 1, 8)
    view = View(query, keys, [], 0.35, TILE, TILE)
    step, start = 8, 30
    mass = torch.zeros(2, 3, 5)
    for head in range(2):
        for square in range(5):
            scores = []
            for column in range(math.ceil(70 / step)):
                pairs = [(square * step + step - 1 - i, column * step + i) for i in range(step)]
                dots = [query[r, head] @ keys[c, 0] for r, c in pairs if r < 40 and c < 70]
                seen = column * step <= square * step + step - 1 + start
                scores.append(sum(dots) * 0.35 / step if seen else -torch.inf)
            for column, weight in enumerate(torch.tensor(scores).softmax(0)):
                mass[head, square * step // TILE, column * step // TILE] += weight
    mass /= mass.sum(-1, keepdim=True)
    assert torch.allclose(XAttention(stride=step).mass(view), mass, atol=1e-5)


def test_means_and_what_they_do_not_describe():
    query, keys, spans = planted(96, text=0)
    ones = torch.ones(8) / 8**0.5
    query[:, 0, :8] += 3 * ones
    keys[:, 0, :8] += 3 * ones
    keys[16:32, 0] *= -1
    keys[48:64:2, 0] *= -1  # one half against the other: its mean is nothing
    keep = BlockFilter(tau=0.9, rules=RULES).keep(View(query, keys, spans, 1.0, TILE, TILE))
    assert keep[0, :, 3].all()
    assert not keep[0, 2:, 1].any()
    query[64:80:2, 0] *= -1
    keep = BlockFilter(tau=0.9, rules=RULES).keep(View(query, keys, spans, 1.0, TILE, TILE))
    assert keep[0, 4].all()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 90), st.integers(0, 60),
    st.lists(st.tuples(st.integers(0, 150), st.integers(0, 40)), min_size=1, max_size=4),
)  # fmt: skip
def test_diagonals_meet_the_tiles_that_they_meet(rows, before, bands):
    context = rows + before
    view = View(torch.zeros(rows, 1, 4), torch.zeros(context, 1, 4), [], 1.0, TILE, 2 * TILE)
    low = torch.tensor([[lag for lag, _ in bands]])
    high = torch.tensor([[lag + width for lag, width in bands]])
    wanted = torch.zeros(1, view.query_tiles, view.key_tiles, dtype=torch.bool)
    for tile in range(view.query_tiles):
        for row in range(tile * TILE, min(rows, tile * TILE + TILE)):
            for lag, width in bands:
                for key in range(before + row - lag - width, before + row - lag + 1):
                    if key >= 0:
                        wanted[0, tile, key // (2 * TILE)] = True
    assert torch.equal(diagonal_tiles(low, high, view), wanted)


def test_the_own_run_is_whole_and_history_has_its_share():
    query, keys = torch.randn(160, 1, 8), torch.randn(160, 1, 8)
    view = View(query, keys, [], 1.0, TILE, TILE)
    strided = LocalAndHistory(local=48, share=0.5, history="strided").keep(view)[0]
    for tile in range(10):
        run = tile * TILE // 48 * 3
        assert strided[tile, run:].all()
        assert strided[tile, :run].tolist() == [bool(number % 2) for number in range(run)]
    pooled = LocalAndHistory(local=48, share=0.3).keep(view)[0]
    scores = query.view(10, 16, 8).mean(1) @ keys.view(10, 16, 8).mean(1).T
    assert pooled[9, 9:].all()
    best = scores[9, :9].topk(3).indices
    assert pooled[9, :9].nonzero()[:, 0].tolist() == sorted(best.tolist())


def test_text_rows_answer_as_under_dense_attention_bit_for_bit():
    query, keys = torch.randn(200, 4, 8) * 2, torch.randn(200, 2, 8)
    spans = [VisualSpan(20, 180, (4, 4, 10))]
    pages = keys.view(1, 200, 2, 8)
    index = {
        "table": torch.zeros(1, 1, dtype=torch.int32),
        "row_starts": torch.tensor([0, 200], dtype=torch.int32),
        "ends": torch.tensor([200], dtype=torch.int32),
    }
    dense = XAttention().select(query, keys, spans, scale=0.3)
    assert density(dense, 200, 200) == 1.0, "few tokens are dense by default"
    whole = sparse_prefill(query, pages, pages, **index, blocks=dense, scale=0.3)
    for selector in SELECTORS:
        mask = selector.select(query, keys, spans, scale=0.3)
        thin = sparse_prefill(query, pages, pages, **index, blocks=mask, scale=0.3)
        assert torch.equal(thin[:20], whole[:20])
        assert torch.equal(thin[180:], whole[180:])
        assert torch.equal(thin, whole) == (density(mask, 200, 200) == 1.0)


@pytest.mark.parametrize(
    "spans",
    [
        [VisualSpan(0, 10, (1, 3, 3))],
        [VisualSpan(10, 19, (1, 3, 3)), VisualSpan(0, 9, (1, 3, 3))],
    ],
)
def test_spans_that_do_not_fit_are_refused(spans):
    with pytest.raises(InvariantBroken, match="visual spans"):
        XAttention().select(torch.zeros(9, 2, 8), torch.zeros(30, 1, 8), spans, scale=1.0)
    with pytest.raises(InvariantBroken, match="do not fit"):
        XAttention().select(torch.zeros(9, 2, 8), torch.zeros(5, 1, 8), [], scale=1.0)
