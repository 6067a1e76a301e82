"""What an instance refuses a request for reaches the client whole: field, message and status."""

import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.flow.drawn import picture
from tests.flow.harness import config, flow
from triptych.core.errors import RequestError, from_code
from triptych.wire.status import http_status

FIELDS = st.from_regex(r"[a-z_]{1,9}(\[[0-9]{1,2}\])?(\.[a-z_]{1,9})?", fullmatch=True)


@given(FIELDS, st.text(min_size=1), st.sampled_from(["invalid", "too_large", "not_found"]))
def test_a_refusal_is_the_same_behind_a_wire(field: str, message: str, status: str) -> None:
    error = RequestError(message, field=field, status=status)
    again = from_code(error.code, str(error))
    assert isinstance(again, RequestError)
    assert (again.field, again.status, again.public) == (field, status, error.public)
    assert (again.code, str(again)) == (error.code, str(error))
    assert http_status(again) == http_status(error)


def test_a_refusal_of_no_field_stays_one() -> None:
    again = from_code("too_large", "the message exceeds 7 bytes")
    assert isinstance(again, RequestError)
    assert (again.field, again.public) == ("", "the message exceeds 7 bytes")
    assert http_status(again) == 413


@pytest.mark.parametrize("topology", ["EPD1", "E1,P1,D1"])
async def test_a_corrupt_picture_names_its_field(topology: str) -> None:
    whole = picture(random.Random(17))
    half = len(whole.data) // 2
    corrupt = msgspec.structs.replace(whole, data=whole.data[:half] + bytes(half))
    async with flow(config(topology)) as running:
        with pytest.raises(RequestError) as caught:
            await running.tokens(running.request(["what is ", corrupt]))
        assert caught.value.field == "picture"
        assert caught.value.public == "picture: cannot be decoded"
        assert running.core.ledger.outcomes == {"failed:invalid_request": 1}
