"""Keys and values as codes: what is written is what is read, by every way to compute."""

import random

import pytest
import torch

from tests.executor.driver import Driver, executors, scene
from tests.executor.memory import BLOCK, KV_HEADS, SIZE, Memory, spans_of
from triptych.core.errors import ConfigError
from triptych.core.layout import CODES, SCALE_BYTES, Layout
from triptych.core.plan import LanguagePlan
from triptych.executor.kernels import launch
from triptych.executor.kernels.reference.quantise import dequantise_kv, quantise_kv
from triptych.executor.kv import KINDS, pages_of, planes
from triptych.executor.operations import PLAIN, Needs, operations
from triptych.executor.ranks import Share

IMAGE, TOLERANCE = 690, 1e-4
NEAR = {"int8": 0.02, "fp8": 0.1}
"""Of outputs of unit size: half a step of a row's largest number, and 2^-4 of each."""
needs_triton = pytest.mark.skipif(not launch.runs_on(torch.device("cpu")), reason="no Triton")


@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize("shape", [(7, 3, 24), (16, 2, 16), (1, 1, 4)])
def test_pages_hold_what_was_written(dtype, shape):
    block_size, heads, size = shape
    store = torch.zeros(10, 3, 2, block_size, heads, size + SCALE_BYTES, dtype=torch.uint8)
    before = store.clone()
    own = pages_of(store, Share(1, 2), dtype)
    torch.manual_seed(1)
    rows = torch.randperm(3 * 2 * block_size)[:11] if block_size > 1 else torch.arange(6)
    x = torch.randn(len(rows), heads, size)
    own.write(rows, x)
    wanted = dequantise_kv(*quantise_kv(x, KINDS[dtype]), torch.float32)
    read = own.read(torch.arange(6), torch.float32).flatten(0, 1)
    assert read[rows].equal(wanted) and own.seen(x).equal(wanted)
    assert (wanted - x).abs().max() < NEAR[dtype] * x.abs().max()
    is_own = torch.zeros(10, dtype=torch.bool)
    is_own[1] = True
    assert store[~is_own].equal(before[~is_own]), "other ranks and blocks are not touched"
    other = [row for row in range(6 * block_size) if row not in rows.tolist()]
    assert not read[other].any()


def test_codes_and_scales_share_the_bytes_of_a_block():
    runs = torch.zeros(4, 2, 16, 2, 16 + SCALE_BYTES, dtype=torch.uint8)
    codes, scales = planes(runs[:, 1], torch.int8)
    codes.fill_(3)
    scales.fill_(0.5)
    assert not runs[:, 0].any()
    assert (codes.float() * scales[..., None]).eq(1.5).all()
    assert scales.data_ptr() % 16 == codes.data_ptr() % 16 == 0


@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize("sizes", [[(0, 9), (30, 47)], [(4, 5), (33, 34), (40, 41), (3, 20)]])
def test_attention_over_codes_is_near_that_over_numbers(dtype, sizes):
    spans = spans_of(*sizes)
    found, _, _ = Memory(spans, dtype=dtype).attend(PLAIN, spans)
    wanted, _, _ = Memory(spans).attend(PLAIN, spans)
    assert 0 < (found - wanted).abs().max() < 3 * NEAR[dtype]


@needs_triton
@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize(
    "sizes", [[(4, 5), (33, 34), (50, 51)], [(0, 9), (30, 47)], [(8, 9), (40, 41), (3, 20)]]
)
def test_kernels_read_and_write_the_same_codes(dtype, sizes):
    spans = spans_of(*sizes)
    memory = Memory(spans, dtype=dtype)
    made_of = operations("triton", Needs("cpu", "float32", 1, 16, 16, BLOCK), deterministic=False)
    found, store, _ = memory.attend(made_of, spans)
    wanted, expected, _ = memory.attend(PLAIN, spans)
    assert (found - wanted).abs().max() < TOLERANCE
    differ = store != expected
    codes, scales = planes(store, KINDS[dtype])
    others, units = planes(expected, KINDS[dtype])
    assert differ.float().mean() < 0.01, "a last place of a turned key may round another way"
    distance = (codes.float() * scales[..., None] - others.float() * units[..., None]).abs()
    is_there = ~distance.isnan()
    assert is_there.any() and not is_there.all(), "there was nothing that must not be touched"
    assert distance[is_there].max() < 3 * NEAR[dtype]


def logits_of(folder, way="plain", *, chunk=10**6, steps=0, **cache):
    """Of the last token, and of each of ``steps`` that follow."""
    made = executors(folder, kernels=way, **cache)
    driver = Driver(made)
    sequence = driver.add(scene(random.Random(3), [5, (3, 4), 7], IMAGE))
    found = []
    try:
        with torch.inference_mode():
            while sequence.computed < len(sequence.tokens) or steps > 0:
                if sequence.computed == len(sequence.tokens):
                    sequence.tokens.append(17)
                    steps -= 1
                segment = sequence.segment(chunk)
                found.append(made.language._model.logits(LanguagePlan((segment,)))[-1:])
                sequence.computed = segment.end
        return torch.cat(found)
    finally:
        made.close()


@pytest.mark.parametrize("dtype", CODES)
def test_a_model_over_codes(dtype, folders):
    folder = folders["qwen2_5_vl"]
    exact = logits_of(folder, steps=3)
    found = logits_of(folder, steps=3, kv_dtype=dtype)
    spread = exact.std()
    assert 0 < (found - exact).abs().max() < (0.2 if dtype == "int8" else 0.6) * spread
    pieces = logits_of(folder, chunk=5, kv_dtype=dtype)[-1:]
    assert (pieces - logits_of(folder, kv_dtype=dtype)).abs().max() < TOLERANCE, "cuts round alike"


@needs_triton
@pytest.mark.parametrize("dtype", CODES)
def test_a_model_of_kernels_over_codes(dtype, folders):
    folder = folders["qwen2_5_vl"]
    plain = logits_of(folder, steps=2, kv_dtype=dtype)
    found = logits_of(folder, "triton", steps=2, kv_dtype=dtype)
    assert (found - plain).abs().max() < 0.05 * plain.std()


@pytest.mark.parametrize("parallel", ["inside", "processes"])
def test_ranks_have_codes_of_their_own_heads(parallel, folders):
    folder = folders["qwen2_5_vl"]
    one = logits_of(folder, steps=2, kv_dtype="int8")
    two = logits_of(folder, steps=2, kv_dtype="int8", num_ranks=2, parallel=parallel)
    assert (one - two).abs().max() < 0.05 * one.std()


def test_memory_is_what_the_layout_says(folders):
    sizes = {}
    for dtype in ("auto", *CODES):
        made = executors(folders["qwen2_5_vl"], kv_dtype=dtype)
        sizes[dtype] = made.memory_bytes["kv"]
        assert made.language.memory.num_bytes == sizes[dtype]
        made.close()
    head = executors(folders["qwen2_5_vl"]).language.memory.layout.shape[-1]
    assert sizes["int8"] == sizes["fp8"] == sizes["auto"] * (head + SCALE_BYTES) // (4 * head)


def test_what_cannot_compute_codes_says_so(folders):
    with pytest.raises(ConfigError, match=r"model\.kernels: native ones keep KV in float32"):
        executors(folders["qwen2_5_vl"], kernels="native", kv_dtype="int8")
    with pytest.raises(ConfigError, match=r"cache\.kv_dtype: every bit"):
        executors("oracle", kv_dtype="int8")


def test_codes_become_nothing_else():
    one = Layout("kv", "m", "int8", (2, 2, BLOCK, KV_HEADS, SIZE + SCALE_BYTES), BLOCK, 2)
    assert one.can_become(one)
    halves = (2, 2, 8, KV_HEADS, SIZE + SCALE_BYTES)
    for other in (
        Layout("kv", "m", "fp8", one.shape, BLOCK, 2),
        Layout("kv", "m", "int8", halves, 8, 2),
        Layout("kv", "m", "int8", one.shape, BLOCK, 1),
        Layout("kv", "m", "float32", (2, 2, BLOCK, KV_HEADS, SIZE), BLOCK, 2),
    ):
        assert not one.can_become(other) and not other.can_become(one)
