"""The proxy in front of two real servers: pictures to the one, everything to the other."""

import asyncio
import json

import pytest

from bench.client import Ask, Target, get, open_loop
from bench.peers.proxy import Place, Proxy, for_the_encoder
from bench.workloads import draw
from tests.bench.test_client import DONE, OK, server, tokens
from tests.flow.served import served

PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,eA=="}}
TEXT = {"type": "text", "text": "What?"}
ENCODED = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


class Fronted:
    """A proxy on a free port."""

    def __init__(self, encoder, decoder):
        self._proxy = Proxy(Place("127.0.0.1", encoder), Place("127.0.0.1", decoder))

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._proxy.serve, "127.0.0.1", 0)
        return Target("127.0.0.1", self._server.sockets[0].getsockname()[1], "demo", 5.0)

    async def __aexit__(self, *_):
        self._server.close()
        await self._server.wait_closed()


def test_each_picture_is_a_request_for_one_token():
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [PICTURE, TEXT, PICTURE]},
    ]
    found = [json.loads(one) for one in for_the_encoder({"model": "m", "messages": messages})]
    assert len(found) == 2
    for one in found:
        assert one["messages"] == [{"role": "user", "content": [PICTURE]}]
        assert (one["model"], one["max_tokens"], one["stream"]) == ("m", 1, False)
    assert for_the_encoder({"messages": [{"role": "user", "content": "no picture"}]}) == []


async def test_the_encoder_first_then_the_request_as_it_came(no_leak):
    encoded, decoded = [], []
    ask = Ask((b"one", b"two"), "What?", 3)
    async with (
        server(ENCODED, seen=encoded) as encoder,
        server(OK, tokens(1), tokens(2, 3), DONE, seen=decoded) as decoder,
        Fronted(encoder.port, decoder.port) as target,
    ):
        (outcome,) = await open_loop(target, [ask], [0.0])
    assert (outcome.status, len(outcome.token_times_s)) == ("ok", 3)
    assert len(encoded) == 2
    assert [part["type"] for part in decoded[0]["messages"][0]["content"]] == [
        "image_url", "image_url", "text",
    ]  # fmt: skip
    assert decoded[0]["max_tokens"] == 3


@pytest.mark.parametrize("answer", [b"HTTP/1.1 500 Oops\r\n\r\n", b""])
async def test_an_encoder_that_fails_fails_the_request(answer):
    decoded = []
    async with (
        server(answer) as encoder,
        server(OK, tokens(1), DONE, seen=decoded) as decoder,
        Fronted(encoder.port, decoder.port) as target,
    ):
        (outcome,) = await open_loop(target, [Ask((b"one",), "What?", 3)], [0.0])
    assert outcome.status == "failed"
    assert "502" in outcome.detail
    assert decoded == []


@pytest.mark.parametrize("text", ["8000", "host:"])
def test_an_address_needs_both_parts(text):
    with pytest.raises(ValueError, match=r"address|invalid literal"):
        Place.of(text)


@pytest.mark.slow
async def test_a_real_server_behind_it_answers_as_without_it():
    async with served("EPD1", 'cluster.backend="local"') as running:
        port = int(running.http.rpartition(":")[2])
        async with Fronted(port, port) as target:
            status, models = await get(target, "/v1/models")
            assert status == 200
            target = target.serving(json.loads(models)["data"][0]["id"])
            asks = draw(3, seed=5)
            outcomes = await open_loop(target, asks, (0.0, 0.0, 0.1))
    assert [outcome.status for outcome in outcomes] == ["ok"] * 3, outcomes
    assert [len(one.token_times_s) for one in outcomes] == [ask.max_tokens for ask in asks]
