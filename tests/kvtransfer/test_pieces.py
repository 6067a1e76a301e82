"""Where the bytes of a piece lie, and that nothing is counted twice or out of turn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtransfer.pieces import Piece, Progress, check_bounds, extents, piece_bytes
from kvtransfer.transports.transport import Extent, slices
from triptych.core.errors import TransferError
from triptych.core.layout import Layout


@st.composite
def layouts(draw):
    layers, size, heads, dim = (draw(st.integers(1, 4)) for _ in "1234")
    shards = draw(st.integers(1, 3))
    return Layout("kv", "m", "uint8", (layers, 2, size, heads, dim), size, shards)


@settings(max_examples=200, deadline=None)
@given(layouts(), st.data())
def test_extents_are_the_layers_of_each_block_shard_by_shard(layout, data):
    places = data.draw(st.lists(st.integers(0, 6), min_size=1, max_size=5))
    first = data.draw(st.integers(0, layout.num_layers - 1))
    count = data.draw(st.integers(1, layout.num_layers - first))
    piece = Piece(0, len(places), first, count)
    store = np.random.default_rng(1).integers(0, 256, 7 * layout.block_bytes, dtype=np.uint8)
    spans = extents(layout, places, piece)
    found = b"".join(slices(memoryview(store), spans))
    array = store.reshape(7, layout.num_shards, *layout.shape)
    assert found == array[places][:, :, first : first + count].tobytes()
    assert len(found) == piece_bytes(layout, piece)
    check_bounds(spans, len(store))
    with pytest.raises(TransferError):
        check_bounds(spans, max(span.offset + span.length for span in spans) - 1)


def test_neighbours_come_as_one_extent_and_rows_of_a_picture_have_no_layers():
    layout = Layout("embedding", "m", "float32", (4, 3), 4)
    assert layout.num_layers == 1
    spans = extents(layout, (4, 5, 6, 1, 2), Piece(0, 5, 0, 1))
    assert spans == [Extent(4 * 48, 3 * 48), Extent(48, 2 * 48)]


def test_progress_takes_each_layer_of_each_block_once():
    progress = Progress(3, 6, 2)
    for piece in (Piece(3, 2, 0, 1), Piece(5, 1, 0, 2), Piece(3, 1, 1, 1), Piece(4, 1, 1, 1)):
        progress.check(piece)
        progress.add(piece)
        with pytest.raises(TransferError):
            progress.check(piece)
        assert progress.is_complete == (piece == Piece(4, 1, 1, 1))
    assert progress.num_complete == 3
    for wrong in (Piece(2, 1, 0, 1), Piece(6, 1, 0, 1), Piece(3, 1, 2, 1), Piece(5, 2, 0, 1)):
        with pytest.raises(TransferError):
            progress.check(wrong)
    mixed = Progress(0, 2, 2)
    mixed.add(Piece(0, 1, 0, 1))
    with pytest.raises(TransferError):
        mixed.check(Piece(0, 2, 0, 1))
    assert mixed.num_complete == 0


def test_layouts_that_can_become_each_other():
    whole = Layout("kv", "m", "float32", (2, 2, 16, 4, 8), 16)
    same = [
        Layout("kv", "m", "bfloat16", (2, 2, 4, 4, 8), 4),
        Layout("kv", "m", "float32", (2, 2, 16, 2, 8), 16, 2),
        Layout("kv", "m", "float16", (2, 2, 8, 1, 8), 8, 4),
    ]
    others = [
        Layout("kv", "n", "float32", (2, 2, 16, 4, 8), 16),
        Layout("kv", "m", "uint8", (2, 2, 16, 4, 8), 16),
        Layout("kv", "m", "float32", (3, 2, 16, 4, 8), 16),
        Layout("kv", "m", "float32", (2, 2, 16, 2, 8), 16),
        Layout("kv", "m", "float32", (2, 2, 16, 2, 16), 16),
        Layout("embedding", "m", "float32", (16, 64), 16),
    ]
    for other in same:
        assert whole.can_become(other)
        assert other.can_become(whole)
    assert not any(whole.can_become(other) or other.can_become(whole) for other in others)
    rows = Layout("embedding", "m", "float32", (16, 64), 16)
    assert rows.can_become(Layout("embedding", "m", "bfloat16", (4, 64), 4))
    assert not rows.can_become(Layout("embedding", "m", "float32", (16, 65), 16))
