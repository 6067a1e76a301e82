"""Sparse prefill on the path of a model: every way to compute against the twin, and what stays."""

import random

import pytest
import torch

from tests.executor.driver import Driver, executors, scene
from tests.executor.memory import BLOCK, Memory, spans_of
from triptych.core.config_sparse import SparseConfig
from triptych.core.errors import ConfigError, InvariantBroken
from triptych.core.layout import CODES
from triptych.core.plan import LanguagePlan
from triptych.executor.attention.plan import Span
from triptych.executor.attention.selectors.rules import Rules
from triptych.executor.attention.selectors.view import VisualSpan
from triptych.executor.attention.sparse import Sparse, sparse_of
from triptych.executor.attention.tiles import attend_tiles
from triptych.executor.kernels import launch
from triptych.executor.kernels.block_mask import BlockMask
from triptych.executor.kernels.reference.sparse import sparse_prefill
from triptych.executor.native import library
from triptych.executor.native_operations import Native
from triptych.executor.operations import PLAIN, Needs, operations

IMAGE, TOLERANCE = 690, 1e-4
HALF = SparseConfig("xattention", min_tokens=1, tile=16, tau=0.5)
WAYS = [
    "plain",
    "native",
    pytest.param(
        "triton", marks=pytest.mark.skipif(not launch.runs_on(torch.device("cpu")), reason="Triton")
    ),
]


class Dice:
    """Keeps tiles by chance, with what the rules demand."""

    def __init__(self, rules):
        self.rules = rules

    def select(self, query, keys, spans, *, scale):
        return self.rules.apply(self, query, keys, spans, scale)

    def keep(self, view):
        dice = torch.Generator().manual_seed(view.context)
        shape = view.heads, view.query_tiles, view.key_tiles
        return torch.rand(shape, generator=dice) < 0.4


def made_of(way):
    if way == "native":
        return Native(library.load())
    return operations(way, Needs("cpu", "float32", 1, 16, 16, BLOCK), deterministic=False)


def mask_of(rows, context, tile_q, tile_k, lists):
    """Causal tiles by chance, the diagonal always."""
    dice = torch.Generator().manual_seed(rows + context)
    first = torch.arange(0, rows, tile_q) + context - rows
    keys = torch.arange(0, context, tile_k)
    last = (first + tile_q - 1).clamp_max(context - 1)[:, None]
    keep = torch.rand(lists, len(first), len(keys), generator=dice) < 0.4
    return BlockMask.of((keep | (keys + tile_k > first[:, None])) & (keys <= last), tile_q, tile_k)


@pytest.mark.parametrize("lists", [2, 4])
@pytest.mark.parametrize(("rows", "context"), [(1, 1), (17, 17), (40, 131), (100, 261)])
@pytest.mark.parametrize("tiles", [(16, 16), (32, 16), (16, 64)])
def test_listed_tiles_in_plain_torch(rows, context, tiles, lists):
    torch.manual_seed(rows)
    query, keys = torch.randn(rows, 4, 24), torch.randn(context, 2, 24)
    values, mask = torch.randn(context, 2, 24), mask_of(rows, context, *tiles, lists)
    pages = (one.double()[None] for one in (keys, values))
    every = torch.tensor([0, rows], dtype=torch.int32)
    end = torch.tensor([context], dtype=torch.int32)
    wanted = sparse_prefill(
        query.double(), *pages, every[:1, None], every, end, mask, scale=24**-0.5
    )
    assert (attend_tiles(query, keys, values, mask) - wanted).abs().max() < 5e-6


def chosen(span, start, end, tile):
    """A span whose tokens from ``start`` to ``end`` are a picture, under chance."""
    picture = VisualSpan(start, end, (1, 1, end - start))
    rules = Rules(tile, tile, min_tokens=1)
    return Sparse(Dice(rules), rules).applied(span._replace(pictures=(picture,)))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("tile", [16, 32])
def test_a_step_of_decodes_and_of_chunks_of_either_kind(way, tile):
    decode, dense, long, whole = spans_of((69, 70), (5, 40), (50, 123), (0, 90))
    spans = [decode, dense, chosen(long, 40, 123, tile), chosen(whole, 3, 80, tile)]
    assert [span.selector is None for span in spans] == [True, True, False, False]
    memory = Memory(spans)
    found, store, _ = memory.attend(made_of(way), spans)
    wanted, expected, _ = memory.attend(PLAIN, spans)
    full, _, _ = memory.attend(PLAIN, [decode, dense, long, whole])
    assert (found - wanted).abs().max() < TOLERANCE
    assert (store - expected)[~expected.isnan()].abs().max() < TOLERANCE
    behind = 1 + 35
    assert (found[:behind] - full[:behind]).abs().max() < TOLERANCE
    is_text = [*range(behind + 73, behind + 73 + 3), *range(behind + 73 + 80, len(found))]
    assert (found[is_text] - full[is_text]).abs().max() < TOLERANCE, "rows of text are dense"
    assert (found[behind:] - full[behind:]).abs().max() > 100 * TOLERANCE, "nothing was left out"


@pytest.mark.parametrize("tile", [16, 64])
def test_lists_in_c_reach_over_several_spans(tile):
    (long,) = spans_of((200, 470))
    spans = [chosen(long, 10, 450, tile)]
    memory = Memory(spans)
    found, _, _ = memory.attend(Native(library.load()), spans)
    wanted, _, _ = memory.attend(PLAIN, spans)
    assert (found - wanted).abs().max() < TOLERANCE
    dense, _, _ = memory.attend(Native(library.load()), [long])
    assert found[250:].equal(dense[250:]), "rows of text read all, with the same bits"


@pytest.mark.parametrize("way", WAYS[::2])
@pytest.mark.parametrize("dtype", CODES)
def test_tiles_of_codes(way, dtype):
    decode, whole = spans_of((69, 70), (0, 90))
    spans = [decode, chosen(whole, 3, 80, 16)]
    memory = Memory(spans, dtype=dtype)
    found, _, _ = memory.attend(made_of(way), spans)
    wanted, _, _ = memory.attend(PLAIN, spans)
    exact, _, _ = Memory(spans).attend(PLAIN, spans)
    assert (found - wanted).abs().max() < TOLERANCE
    assert 0 < (found - exact).abs().max() < 0.3


def test_lists_that_heads_cannot_share_are_refused():
    (whole,) = spans_of((0, 90))

    class Odd(Dice):
        def keep(self, view):
            return super().keep(view)[:1]

    rules = Rules(16, 16, min_tokens=1)
    picture = VisualSpan(3, 80, (1, 7, 11))
    span = Sparse(Odd(rules), rules).applied(whole._replace(pictures=(picture,)))
    with pytest.raises(InvariantBroken, match="1 lists of tiles for 4 heads, 2 of keys"):
        Memory([whole]).attend(PLAIN, [span])


@pytest.mark.parametrize("size", [16, 48, 112])
def test_what_c_computes_of_text_and_of_all_tiles_is_the_same_bits(size):
    (whole,) = spans_of((0, 91))
    native, text = Native(library.load()), [*range(16), *range(80, 91)]
    memory = Memory([whole], size=size)
    dense, _, _ = memory.attend(native, [whole])
    found, _, _ = memory.attend(native, [chosen(whole, 16, 80, 16)])
    assert found[text].equal(dense[text])
    assert not found[16:80].equal(dense[16:80])
    every = sparse_of(SparseConfig("local_and_history", min_tokens=1, tile=16, local_tokens=999))
    picture = VisualSpan(16, 80, (1, 8, 8))
    found, _, plan = memory.attend(native, [every.applied(whole._replace(pictures=(picture,)))])
    assert plan.sparse and found.equal(dense)


def test_who_is_taken():
    rules = Rules(16, 16, min_tokens=64)
    sparse, picture = Sparse(Dice(rules), rules), VisualSpan(10, 58, (1, 6, 8))

    def is_taken(start, end, *pictures):
        return sparse.applied(Span(start, end, (), pictures)).selector is not None

    assert is_taken(0, 64, picture)
    assert not is_taken(0, 63, picture), "too short"
    assert not is_taken(0, 64), "text only"
    assert not is_taken(57, 90, picture), "no tile without text"
    assert is_taken(48, 90, VisualSpan(40, 66, (1, 2, 13)))
    assert not is_taken(63, 64, VisualSpan(0, 64, (1, 8, 8))), "a single row"
    assert is_taken(64, 70, VisualSpan(0, 70, (1, 7, 10))), "a part of a tile, all picture"


def test_every_selector_can_be_configured():
    names = ("xattention", "block_filter", "vertical_slash", "modality", "local_and_history")
    found = [sparse_of(SparseConfig(name)) for name in names]
    assert len({type(one._selector) for one in found}) == len(names)
    assert sparse_of(SparseConfig()) is None


def logits_of(folder, config, way="plain", *, chunk=10**6, **more):
    """Of the last token of a prompt with a picture of 4 x 8 and one of 4 x 5 tokens."""
    made = executors(folder, kernels=way, sparse=config, **more)
    driver = Driver(made)
    sequence = driver.add(scene(random.Random(3), [5, (4, 8), 7, (4, 5), 3], IMAGE))
    try:
        with torch.inference_mode():
            while sequence.computed < len(sequence.tokens):
                segment = sequence.segment(chunk)
                logits = made.language._model.logits(LanguagePlan((segment,)))
                sequence.computed = segment.end
        return logits
    finally:
        made.close()


@pytest.mark.parametrize("way", WAYS[1:])
def test_a_model_that_leaves_tiles_out(way, folders):
    folder = folders["qwen2_5_vl"]
    dense, plain = (logits_of(folder, config) for config in (SparseConfig(), HALF))
    assert not plain.equal(dense), "no tile was left out"
    assert (logits_of(folder, HALF, way) - plain).abs().max() < TOLERANCE


def test_a_threshold_that_no_prompt_reaches_changes_no_bit(folders):
    far = SparseConfig("xattention", min_tokens=10_000, tile=16, tau=0.5)
    for way in ("plain", "native"):
        dense = logits_of(folders["qwen2_5_vl"], SparseConfig(), way)
        assert logits_of(folders["qwen2_5_vl"], far, way).equal(dense)


def test_chunks_of_a_picture_are_sparse_each(folders):
    """Chunks change what is chosen, and therefore numbers; they stay near the dense ones."""
    folder = folders["qwen2_5_vl"]
    dense, whole = (logits_of(folder, config) for config in (SparseConfig(), HALF))
    pieces = logits_of(folder, HALF, chunk=20)
    spread = dense.std()
    assert 0 < (pieces - dense).abs().max() < spread
    assert 0 < (whole - dense).abs().max() < spread


@pytest.mark.parametrize("parallel", ["inside", "processes"])
def test_ranks_choose_for_their_own_heads(folders, parallel):
    one = logits_of(folders["qwen2_5_vl"], HALF, "native")
    two = logits_of(folders["qwen2_5_vl"], HALF, "native", num_ranks=2, parallel=parallel)
    assert (one - two).abs().max() < TOLERANCE


def test_a_model_without_attention_has_no_selector():
    with pytest.raises(ConfigError, match="the oracle has no attention"):
        executors("oracle", sparse=HALF)


def test_kv_of_another_selector_is_that_of_another_model():
    marks = {SparseConfig(name, tau=tau).model("m") for name in ("xattention", "block_filter")
             for tau in (0.8, 0.9)}  # fmt: skip
    assert len(marks) == 4 and "m" not in marks
    assert SparseConfig(tau=0.1).model("m") == "m"
