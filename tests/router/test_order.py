"""Tokens of two stages reach the client in order, once each, however they interleave."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.journey import Order
from triptych.core.errors import InvariantBroken
from triptych.core.event import Token


@given(st.integers(0, 5), st.permutations(range(7)))
def test_any_arrival_order_streams_in_order(start: int, arrival: list[int]) -> None:
    order, seen = Order(start), []
    for index in arrival:
        seen += order.put((Token(start + index, 10 * index),))
    assert [token.index for token in seen] == list(range(start, start + 7))
    assert order.is_complete


def test_is_not_complete_before_the_first_token_and_over_a_gap() -> None:
    order = Order(0)
    assert not order.is_complete
    assert order.put((Token(1, 5),)) == []
    assert not order.is_complete
    assert [token.id for token in order.put((Token(0, 4),))] == [4, 5]
    assert order.is_complete


@pytest.mark.parametrize("again", [0, 1])
def test_a_token_that_comes_twice_is_a_bug(again: int) -> None:
    order = Order(0)
    order.put((Token(0, 4), Token(1, 5)))
    with pytest.raises(InvariantBroken):
        order.put((Token(again, 4),))
