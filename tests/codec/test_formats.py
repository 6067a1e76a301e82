"""Whole blocks in a format: any layout, any layers, any places, and not a byte beside them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych.codec.dtypes import convert, widen
from triptych.codec.formats import FORMATS
from triptych.codec.grid import blocks_of, grid_of, runs
from triptych.core.errors import ConfigError
from triptych.core.layout import Layout

DTYPES = ("float32", "float16", "bfloat16")


@st.composite
def layouts(draw, dtypes=DTYPES):
    dtype = draw(st.sampled_from(dtypes))
    tokens = draw(st.integers(1, 5))
    if draw(st.booleans()):
        width = draw(st.sampled_from([1, 7, 128, 130, 256]))
        return Layout("embedding", "m", dtype, (tokens, width), tokens)
    layers, heads, size = (draw(st.integers(1, 3)) for _ in range(3))
    shape = (layers, 2, tokens, heads, size)
    return Layout("kv", "m", dtype, shape, tokens, draw(st.integers(1, 3)))


def filled(layout, num_blocks, seed):
    """A store of numbers between 0.5 and 2, or of any bytes."""
    numbers = np.random.default_rng(seed)
    memory = bytearray(num_blocks * layout.block_bytes)
    array = blocks_of(memoryview(memory), layout)
    if layout.dtype == "uint8":
        array[...] = numbers.integers(0, 256, array.shape)
    else:
        convert(numbers.uniform(0.5, 2, array.shape).astype("f4"), "float32", array, layout.dtype)
    return memory


def chosen(data, layout):
    layers = grid_of(layout).layers
    first = data.draw(st.integers(0, layers - 1))
    return range(first, data.draw(st.integers(first + 1, layers)))


@given(data=st.data(), layout=layouts((*DTYPES, "uint8")), seed=st.integers(0, 99))
def test_raw_pieces_are_the_bytes_of_the_layers(data, layout, seed):
    raw, layers = FORMATS["raw"], chosen(data, layout)
    source, target = filled(layout, 7, seed), filled(layout, 9, seed + 1)
    theirs = data.draw(st.lists(st.integers(0, 6), min_size=1, max_size=7, unique=True))
    ours = data.draw(st.permutations(range(9)))[: len(theirs)]
    wire = bytearray(len(theirs) * raw.encoded_bytes(layout, len(layers)))
    raw.encode(layout, memoryview(source), theirs, memoryview(wire), layers)
    size = layout.block_bytes // layout.num_shards
    one_layer = size // grid_of(layout).layers
    expected = bytearray(target)
    joined = b""
    for block, own in zip(theirs, ours, strict=True):
        for shard in range(layout.num_shards):
            start, end = (shard * size + layer * one_layer for layer in (layers.start, layers.stop))
            at, own_at = block * layout.block_bytes, own * layout.block_bytes
            joined += source[at + start : at + end]
            expected[own_at + start : own_at + end] = source[at + start : at + end]
    assert bytes(wire) == joined
    raw.decode(layout, memoryview(wire), memoryview(target), ours, layers)
    assert target == expected


@pytest.mark.parametrize("name", ["int8", "fp8"])
@given(data=st.data(), layout=layouts(), seed=st.integers(0, 99))
def test_quantised_pieces_come_back_near_and_touch_nothing_else(name, data, layout, seed):
    form, layers = FORMATS[name], chosen(data, layout)
    source, target = filled(layout, 7, seed), filled(layout, 9, seed + 1)
    theirs = data.draw(st.lists(st.integers(0, 6), min_size=1, max_size=7, unique=True))
    ours = data.draw(st.permutations(range(9)))[: len(theirs)]
    wire = bytearray(len(theirs) * form.encoded_bytes(layout, len(layers)))
    form.encode(layout, memoryview(source), theirs, memoryview(wire), layers)
    before = bytes(target)
    form.decode(layout, memoryview(wire), memoryview(target), ours, layers)

    wide = [read(memory, layout) for memory in (source, target, before)]
    here = slice(layers.start, layers.stop)
    ours_now, theirs_then = wide[1][ours][:, :, here], wide[0][theirs][:, :, here]
    assert np.abs(ours_now / theirs_then - 1).max() < 0.07
    wide[1][np.ix_(ours, range(grid_of(layout).shards), layers)] = 0
    wide[2][np.ix_(ours, range(grid_of(layout).shards), layers)] = 0
    assert np.array_equal(wide[1], wide[2])


def read(memory, layout):
    return widen(blocks_of(memoryview(memory), layout), layout.dtype).astype(np.float64)


def test_sizes_of_a_real_model():
    kv = Layout("kv", "m", "bfloat16", (28, 2, 16, 4, 128), 16)
    rows = Layout("embedding", "m", "bfloat16", (16, 3584), 16)
    assert FORMATS["raw"].encoded_bytes(kv) == kv.block_bytes
    for name in ("int8", "fp8"):
        assert FORMATS[name].encoded_bytes(kv) == kv.block_bytes * 132 // 256
        assert FORMATS[name].encoded_bytes(kv, 7) * 4 == FORMATS[name].encoded_bytes(kv)
        assert FORMATS[name].encoded_bytes(rows) == rows.block_bytes * 132 // 256


@pytest.mark.parametrize("name", ["int8", "fp8"])
def test_bytes_of_the_oracle_are_refused_and_the_setting_named(name):
    layout = Layout("kv", "oracle", "uint8", (2, 2, 4, 1, 16), 4)
    assert not FORMATS[name].takes(layout)
    with pytest.raises(ConfigError, match=r"transfer\.wire: .*bytes"):
        FORMATS[name].check(layout, "transfer.wire")
    FORMATS["raw"].check(layout, "transfer.wire")


def test_runs_say_where_and_which():
    assert runs((4, 5, 6, 1, 2)) == [(slice(0, 3), slice(4, 7)), (slice(3, 5), slice(1, 3))]
    assert runs(()) == []
    assert runs((3, 2, 2)) == [
        (slice(0, 1), slice(3, 4)), (slice(1, 2), slice(2, 3)), (slice(2, 3), slice(2, 3))
    ]  # fmt: skip
