"""Offers as queues of pieces: whatever is written and taken when, everything goes once, in turn."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtransfer.lease import Lease
from kvtransfer.offer import Offer, Offers
from kvtransfer.pieces import Piece, Progress
from tests.kvtransfer.stores import Store
from triptych.core.clock import ManualClock
from triptych.core.errors import InvariantBroken
from triptych.core.ids import Handle
from triptych.core.layout import Layout

LAYOUT = Layout("kv", "m", "uint8", (3, 2, 4, 1, 5), 4)
EACH = LAYOUT.block_bytes // 3
MANY = 1 << 30


@pytest.fixture(scope="module")
def store():
    made = Store(50, LAYOUT)
    yield made
    made.close()


def offer_of(store):
    offers = Offers(10.0, ManualClock(), lambda call, *args: call(*args))
    offer = Offer(Lease(Handle("h"), 0, "job"), store, lambda _: None, offers.change)
    offers.add(offer)
    return offer


def test_pieces_that_wait_join_along_layers_and_blocks(store):
    offer = offer_of(store)
    for layer in (1, 2, 3):
        offer.append([1, 2], layer)
    offer.append([9])
    offer.append([7, 8], 2)
    assert offer.take_out(0, 9, MANY, MANY) == Piece(0, 3, 0, 3)
    assert offer.take_out(0, 9, MANY, MANY) == Piece(3, 2, 0, 2)
    offer.append([7, 8])
    assert offer.take_out(0, 9, MANY, MANY) == Piece(3, 2, 2, 1)
    assert offer.take_out(0, 9, MANY, MANY) is None
    assert offer.num_blocks == 5


def test_an_allowance_leaves_what_is_too_large(store):
    offer = offer_of(store)
    offer.append([1, 2, 3])
    assert offer.take_out(0, 3, MANY, 9 * EACH - 1) is None
    assert offer.num_ready(0, 3, 6 * EACH) == 2
    assert offer.take_out(0, 3, 6 * EACH, 6 * EACH) == Piece(0, 2, 0, 3)
    assert offer.num_ready(0, 3, 6 * EACH) == 1
    offer.put_back([Piece(0, 2, 0, 3)])
    assert offer.take_out(0, 3, MANY, MANY) == Piece(0, 2, 0, 3)


def test_misuse(store):
    offer = offer_of(store)
    offer.append([1, 2], 2)
    for wrong in (lambda: offer.append([1, 2], 1), lambda: offer.append([1], 3)):
        with pytest.raises(InvariantBroken, match="turn"):
            wrong()
    with pytest.raises(InvariantBroken, match="turn"):
        offer.append([1, 2], 4)
    with pytest.raises(InvariantBroken, match="all layers"):
        offer.finish()
    offer.append([1, 2], 2)
    offer.append([1, 2])
    offer.finish()


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_everything_goes_once_and_in_turn(store, data):
    """Against the taker's own book-keeping, with writing and taking in any order."""
    offer = offer_of(store)
    first = data.draw(st.integers(0, 8))
    end = data.draw(st.integers(first, 14))
    progress = Progress(first, end, 3)
    limit = data.draw(st.integers(1, 20)) * EACH
    places: list[int] = []
    ready = 0

    def take() -> bool:
        nonlocal ready
        ready = offer.num_ready(first, end, limit)
        piece = offer.take_out(first, end, limit, MANY)
        if piece is None:
            assert ready == 0
            return False
        progress.check(piece)
        progress.add(piece)
        each = piece.num_layers * EACH
        assert piece.num_blocks == 1 or piece.num_blocks * each <= limit
        assert offer.num_ready(first, end, limit) == ready - 1
        return True

    while len(places) < end:
        group = data.draw(st.lists(st.integers(0, 49), min_size=1, max_size=4))
        for layers in [*sorted(data.draw(st.sets(st.integers(1, 2)))), 3]:
            offer.append(group, layers)
            if data.draw(st.booleans()):
                take()
        places += group
    while take():
        pass
    assert progress.is_complete
    assert offer.blocks == places
