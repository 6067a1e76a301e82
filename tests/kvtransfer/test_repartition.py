"""Repartition against a model that moves one number at a time."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtransfer.repartition import Repartition, parts
from triptych.codec.dtypes import STORAGE, convert, widen
from triptych.codec.formats import FORMATS
from triptych.codec.grid import blocks_of, grid_of
from triptych.codec.pieces import PlainPieces
from triptych.core.errors import TransferError
from triptych.core.layout import Layout

FLOATS = ("float32", "float16", "bfloat16")


@st.composite
def pairs(draw, kinds=("kv", "embedding")):
    """Two layouts that hold the same numbers differently."""
    dtypes = (st.sampled_from(FLOATS),) * 2 if draw(st.booleans()) else (st.just("uint8"),) * 2
    sizes = [draw(st.integers(1, 7)) for _ in range(2)]
    first, second = (draw(dtype) for dtype in dtypes)
    if draw(st.sampled_from(kinds)) == "embedding":
        width = draw(st.sampled_from([1, 7, 256]))
        return tuple(
            Layout("embedding", "m", dtype, (size, width), size)
            for dtype, size in zip((first, second), sizes, strict=True)
        )
    heads = draw(st.sampled_from([1, 2, 3, 4, 6]))
    layers, dim = draw(st.integers(1, 3)), draw(st.sampled_from([1, 3, 4]))
    divisors = [count for count in range(1, heads + 1) if heads % count == 0]
    return tuple(
        Layout("kv", "m", dtype, (layers, 2, size, heads // shards, dim), size, shards)
        for dtype, size, shards in zip(
            (first, second), sizes, (draw(st.sampled_from(divisors)) for _ in range(2)), strict=True
        )
    )


class Store:
    """Blocks full of numbers that are all different, or nearly."""

    def __init__(self, layout: Layout, num_blocks: int, seed: int) -> None:
        self.layout = layout
        self.memory = bytearray(num_blocks * layout.block_bytes)
        self.array = blocks_of(memoryview(self.memory), layout)
        numbers = np.random.default_rng(seed)
        if layout.dtype == "uint8":
            self.array[...] = numbers.integers(0, 256, self.array.shape)
        else:
            wide = numbers.standard_normal(self.array.shape).astype(np.float32)
            convert(wide, "float32", self.array, layout.dtype)

    def place(self, blocks, token, layer, plane, head):
        """Index of a row by what it means."""
        grid = grid_of(self.layout)
        shard, inner = divmod(head, grid.heads)
        return (blocks[token // grid.tokens], shard, layer, plane, token % grid.tokens, inner)

    def heads(self):
        grid = grid_of(self.layout)
        return range(grid.shards * grid.heads)


def naive(source, theirs, target, ours, tokens, layers, first_target):
    """The rows of ``tokens`` and ``layers``, one by one."""
    wanted = target.array.copy()
    planes = grid_of(source.layout).planes
    for token, layer, plane, head in itertools.product(
        tokens, layers, range(planes), source.heads()
    ):
        taken = source.array[source.place(theirs, token, layer, plane, head)]
        at = target.place(ours, token - first_target, layer, plane, head)
        convert(taken[None, :], source.layout.dtype, wanted[at][None, :], target.layout.dtype)
    return wanted


def cases(data, layouts):
    source, target = Store(layouts[0], 9, 1), Store(layouts[1], 40, 2)
    theirs_size, ours_size = (layout.block_size for layout in layouts)
    count = data.draw(st.integers(1, 5))
    length = data.draw(st.integers((count - 1) * theirs_size + 1, count * theirs_size))
    hit = data.draw(st.integers(0, (length - 1) // ours_size)) * ours_size
    theirs = data.draw(st.permutations(range(9)))[:count]
    ours = data.draw(st.permutations(range(40)))[: -(-length // ours_size) - hit // ours_size]
    layers = grid_of(layouts[0]).layers
    first = data.draw(st.integers(0, layers - 1))
    return source, target, theirs, ours, range(hit, length), range(
        first, data.draw(st.integers(first + 1, layers))
    )  # fmt: skip


@given(data=st.data(), layouts=pairs())
def test_every_wanted_number_lands_where_it_belongs_and_nothing_else_moves(data, layouts):
    source, target, theirs, ours, tokens, layers = cases(data, layouts)
    wanted = naive(source, theirs, target, ours, tokens, layers, tokens.start)
    repartition = Repartition(*layouts)
    here = slice(layers.start, layers.stop)
    cut = data.draw(st.integers(0, len(theirs)))
    for first, some in ((0, theirs[:cut]), (cut, theirs[cut:])):
        if data.draw(st.booleans()):  # out of the giver's own store
            pieces, places = PlainPieces(source.array[:, :, here], layouts[0].dtype), some
        else:  # as they came over a wire
            raw = FORMATS["raw"]
            wire = memoryview(bytearray(len(some) * raw.encoded_bytes(layouts[0], len(layers))))
            raw.encode(layouts[0], memoryview(source.memory), some, wire, layers)
            pieces, places = raw.pieces(layouts[0], wire, len(layers)), range(len(some))
        repartition.land(pieces, places, first, target.array[:, :, here], ours, tokens)
    assert target.array.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("name", ["int8", "fp8"])
@given(data=st.data(), layouts=pairs())
def test_quantised_pieces_land_as_they_would_without_a_new_shape(name, data, layouts):
    """Decoding into another shape is decoding in place, then moving."""
    if layouts[0].dtype == "uint8":
        layouts = [_floating(layout) for layout in layouts]
    source, target, theirs, ours, tokens, layers = cases(data, layouts)
    form, repartition = FORMATS[name], Repartition(*layouts)
    wire = memoryview(bytearray(len(theirs) * form.encoded_bytes(layouts[0], len(layers))))
    form.encode(layouts[0], memoryview(source.memory), theirs, wire, layers)
    # numbers as float32 in the giver's shape, then the naive move with the taker's rounding
    plain = Store(_floating(layouts[0]), 9, 3)
    form.decode(plain.layout, wire, memoryview(plain.memory), theirs, layers)
    wanted = naive(plain, theirs, target, ours, tokens, layers, tokens.start)
    pieces = form.pieces(layouts[0], wire, len(layers))
    here = slice(layers.start, layers.stop)
    repartition.land(pieces, range(len(theirs)), 0, target.array[:, :, here], ours, tokens)
    assert target.array.tobytes() == wanted.tobytes()


def _floating(layout):
    return Layout(*(layout.kind, layout.model, "float32", layout.shape, layout.block_size,
                    layout.num_shards))  # fmt: skip


@given(
    begin=st.integers(0, 50), length=st.integers(0, 60), a=st.integers(1, 17), b=st.integers(1, 17)
)
def test_parts_cut_an_interval_at_both_sides_units(begin, length, a, b):
    found = list(parts(begin, begin + length, a, b))
    tokens = [
        (part.source * a + here, part.target * b + there)
        for part in found
        for here, there in zip(
            range(part.source_at.start, part.source_at.stop),
            range(part.target_at.start, part.target_at.stop),
            strict=True,
        )
    ]
    assert tokens == [(token, token) for token in range(begin, begin + length)]
    assert all(part.source_at.stop <= a and part.target_at.stop <= b for part in found)
    cuts = {cut for size in (a, b) for cut in range(0, begin + length, size) if begin < cut}
    assert len(found) == (len(cuts) + 1 if length else 0)


KV = Layout("kv", "m", "float32", (2, 2, 4, 3, 5), 4, 2)
ROWS = Layout("embedding", "m", "float32", (4, 6), 4)


@pytest.mark.parametrize(
    "other",
    [
        ROWS,
        Layout("kv", "another", "float32", (2, 2, 4, 3, 5), 4, 2),
        Layout("kv", "m", "uint8", (2, 2, 4, 3, 5), 4, 2),
        Layout("kv", "m", "float32", (3, 2, 4, 3, 5), 4, 2),
        Layout("kv", "m", "float32", (2, 2, 4, 3, 4), 4, 2),
        Layout("kv", "m", "float32", (2, 2, 4, 2, 5), 4, 2),
        Layout("kv", "m", "float32", (2, 2, 4, 1, 5), 4, 5),
    ],
)
def test_other_numbers_are_refused(other):
    """The last two: numbers of heads that do not come out the same."""
    for pair in ((KV, other), (other, KV)):
        with pytest.raises(TransferError):
            Repartition(*pair)


def test_rows_of_another_width_are_refused():
    with pytest.raises(TransferError):
        Repartition(ROWS, Layout("embedding", "m", "float32", (4, 7), 4))


def test_numbers_are_rounded_to_nearest_even():
    target = Layout("kv", "m", "bfloat16", (1, 2, 1, 1, 2), 1)
    source = Layout("kv", "m", "float32", (1, 2, 1, 1, 2), 1)
    values = np.array([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 3.0], np.float32)
    store = np.zeros((1, *grid_of(target)), STORAGE["bfloat16"])
    pieces = FORMATS["raw"].pieces(source, memoryview(values).cast("B"))
    Repartition(source, target).land(pieces, [0], 0, store, [0], range(1))
    assert widen(store, "bfloat16").ravel().tolist() == [1, 1 + 2**-6, -1, 3.0]
