"""Tables that must be whole: errors and their statuses, metrics and states."""

import inspect

import msgspec
import pytest

from triptych.core import errors
from triptych.core.config import Config
from triptych.core.lifecycle import RequestState, can_follow
from triptych.wire.status import STATUS

ERRORS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, errors.TriptychError)
]


@pytest.mark.parametrize("kind", ERRORS)
def test_every_error_has_its_own_row_of_statuses(kind):
    assert kind in STATUS


@pytest.mark.parametrize("kind", ERRORS)
def test_every_error_of_the_tree_is_drawn_and_says_what_a_client_may_read(kind):
    assert kind.__name__ in (errors.__doc__ or "")
    assert "/" not in kind.public
    assert kind.code


@pytest.mark.parametrize("code", sorted(errors.BY_CODE))
def test_codes_that_cross_a_wire_come_back_as_the_same_error(code):
    again = errors.from_code(code, "detail")
    assert again.code == code
    assert again.is_retryable == errors.BY_CODE[code].is_retryable


def test_every_retryable_error_can_cross_a_wire():
    retryable = {kind for kind in ERRORS if kind.is_retryable}
    assert retryable <= set(errors.BY_CODE.values())


def test_every_section_of_the_config_is_frozen_and_refuses_unknown_keys():
    for field in msgspec.structs.fields(Config):
        struct = field.type.__struct_config__
        assert struct.frozen, field.name
        assert struct.forbid_unknown_fields, field.name


def test_nothing_follows_an_end():
    for before in RequestState:
        followers = {after for after in RequestState if can_follow(before, after)}
        assert RequestState.ACCEPTED not in followers
        assert bool(followers) is not before.is_terminal
