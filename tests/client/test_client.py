"""The client's own part: what it sends, what it refuses, what it raises. Calls are tested at the
gRPC door."""

import asyncio

import pytest

from tests.patience import PATIENCE_S
from tests.router.doors.scripted import ScriptedService, grpc_door, until
from triptych.client import AsyncClient, Client
from triptych.client.options import Turn, make_request
from triptych.core.errors import InstanceLost, RequestError, Unavailable


def test_message_of_all_options():
    message = make_request(
        "what?",
        [b"one", b"two"],
        {
            "model": "m",
            "system": "be brief",
            "max_tokens": 7,
            "temperature": 0.0,
            "top_k": 3,
            "seed": -5,
            "logprobs": 0,
            "stop": ["x"],
            "stop_token_ids": [9],
            "ignore_eos": True,
            "num_choices": 2,
            "slo": "strict",
            "tpot_ms": 5.0,
        },
    )
    assert [turn.role for turn in message.messages] == ["system", "user"]
    parts = message.messages[1].parts
    assert [part.picture for part in parts[:2]] == [b"one", b"two"] and parts[2].text == "what?"
    sampling = message.sampling
    assert sampling.HasField("temperature") and sampling.temperature == 0.0
    assert sampling.HasField("logprobs") and sampling.logprobs == 0
    assert not sampling.HasField("top_p") and not message.slo.HasField("ttft_ms")
    assert (sampling.top_k, sampling.seed, message.max_tokens) == (3, -5, 7)
    assert (message.slo.name, message.slo.tpot_ms, message.num_choices) == ("strict", 5.0, 2)
    assert list(message.stop_token_ids) == [9] and message.ignore_eos


def test_a_conversation_is_sent_as_it_was():
    turns = [Turn("user", (b"one", "what?")), Turn("assistant", ("a",)), Turn("user", ("why?",))]
    message = make_request(turns, [], {"system": "be brief"})
    assert [turn.role for turn in message.messages] == ["system", "user", "assistant", "user"]
    parts = message.messages[1].parts
    assert (parts[0].picture, parts[1].text) == (b"one", "what?")
    with pytest.raises(RequestError) as caught:
        make_request(turns, [b"two"], {})
    assert caught.value.field == "pictures"


def test_defaults_are_the_servers():
    message = make_request("what?", [], {})
    for name in ("max_tokens", "num_choices", "slo"):
        assert not message.HasField(name)
    assert message.sampling.ListFields() == [] and len(message.messages) == 1


def test_a_picture_that_is_not_there(tmp_path):
    with pytest.raises(RequestError, match="No such file") as caught:
        make_request("what?", [tmp_path / "no.png"], {})
    assert caught.value.field == "pictures"


@pytest.mark.parametrize("options", [{"max_tokens": -1}, {"seed": 2**70}, {"top_k": "many"}])
def test_values_that_no_message_can_hold(options):
    with pytest.raises(RequestError):
        make_request("what?", [], options)


def test_no_server():
    with Client("127.0.0.1:1") as client:
        with pytest.raises(Unavailable, match="onnect|reached"):
            client.list_models()
        with pytest.raises(Unavailable):
            client.generate("x", timeout_s=PATIENCE_S).text()


async def test_sync_errors_and_close():
    service = ScriptedService(pause_s=0.02, repeat=1000)
    async with grpc_door(service) as address:

        def give_up():
            with Client(address) as client:
                answer = client.generate("one two three", max_tokens=3000)
                first = next(answer)
                answer.close()
                return first.text, answer.request_id

        text, request_id = await asyncio.to_thread(give_up)
        assert text == "one" and request_id == service.requests[0].id
        await until(lambda: service.num_tickets == 0)
    assert service.ended == ["cancelled"]


async def test_parts_before_a_failure_arrive():
    service = ScriptedService(fail_at=2, error=InstanceLost("x"))
    async with grpc_door(service) as address, AsyncClient(address) as client:
        texts = []
        answer = client.generate("one two three")
        with pytest.raises(InstanceLost):
            async for part in answer:
                texts.append(part.text)
    assert texts == ["one", "two"] and answer.final is None
