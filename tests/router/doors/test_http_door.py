"""The HTTP door over real sockets, with the official client, httpx and bare sockets."""

import asyncio
import base64
import contextlib
import io
import json
import re
import time
from pathlib import Path

import httpx
import openai
import pytest
from PIL import Image

from tests.patience import PATIENCE_S
from tests.router.doors.scripted import (
    ScriptedService,
    bare_connection,
    http_door,
    post_bytes,
    token_id,
    until,
)
from triptych.core.errors import InstanceLost

HELLO = {"model": "scripted", "messages": [{"role": "user", "content": "one two three"}]}


def png(width=28, height=28) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), (200, 10, 10)).save(out, "PNG")
    return out.getvalue()


def data_url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def picture_body(url: str, **more):
    content = [
        {"type": "text", "text": "what is "},
        {"type": "image_url", "image_url": {"url": url, "detail": "high"}},
        {"type": "text", "text": "this"},
    ]
    return {"messages": [{"role": "user", "content": content}], **more}


async def post(url, body, **more):
    async with httpx.AsyncClient(base_url=url, timeout=20) as client:
        return await client.post("/v1/chat/completions", json=body, **more)


def events(text: str) -> list[str]:
    blocks = [block for block in text.split("\n\n") if block]
    assert all(block.startswith("data: ") for block in blocks)
    return [block.removeprefix("data: ") for block in blocks]


async def test_official_client_whole_answer():
    service = ScriptedService()
    async with http_door(service) as url, client_of(url) as client:
        answer = await client.chat.completions.create(
            model="scripted",
            messages=HELLO["messages"],
            temperature=0,
            seed=7,
            n=2,
            logprobs=True,
            top_logprobs=3,
            extra_body={"return_token_ids": True, "slo": {"class": "strict", "tpot_ms": 40}},
        )
        models = await client.models.list()
    assert [choice.message.content for choice in answer.choices] == ["onetwothree"] * 2
    assert [choice.finish_reason for choice in answer.choices] == ["stop", "stop"]
    assert answer.usage.prompt_tokens == 11 and answer.usage.completion_tokens == 6
    assert answer.usage.prompt_tokens_details.cached_tokens == 3
    content = answer.choices[0].logprobs.content
    assert [token.token for token in content] == ["one", "two", "three"]
    assert [top.logprob for top in content[0].top_logprobs] == [-1.5, -2.5, -3.5]
    assert bytes(content[2].bytes) == b"three"
    assert answer.choices[0].token_ids == [token_id(word) for word in ("one", "two", "three")]
    assert answer.triptych["timeline_ms"]["ttft"] == 15.0
    assert answer.triptych["route"] == ["p@0", "d@0"]
    assert [model.id for model in models.data] == ["scripted"]
    request = service.requests[0]
    assert (request.sampling.temperature, request.sampling.seed) == (0, 7)
    assert (request.slo.name, request.slo.ttft_s, request.slo.tpot_s) == ("strict", 0.8, 0.04)
    assert service.num_tickets == 0


def client_of(url, key="none"):
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)


@pytest.mark.parametrize("num_choices", [1, 3])
@pytest.mark.parametrize("include_usage", [True, False])
async def test_official_client_stream(num_choices, include_usage):
    async with http_door(ScriptedService()) as url, client_of(url) as client:
        options = {"stream_options": {"include_usage": True}} if include_usage else {}
        stream = await client.chat.completions.create(
            model="scripted", messages=HELLO["messages"], stream=True, n=num_choices, **options
        )
        chunks = [chunk async for chunk in stream]
    text = [""] * num_choices
    reasons = [None] * num_choices
    for chunk in chunks:
        for choice in chunk.choices:
            text[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert text == ["onetwothree"] * num_choices
    assert reasons == ["stop"] * num_choices
    assert len({chunk.id for chunk in chunks}) == 1
    last = chunks[-1]
    assert last.triptych["timeline_ms"]["kv_transfer"] == 5.0
    if include_usage:
        assert last.choices == [] and last.usage.total_tokens == 11 + 3 * num_choices
        assert all(chunk.usage is None for chunk in chunks[:-1])
    else:
        assert last.usage is None and last.choices[0].finish_reason == "stop"


async def test_stream_on_the_wire():
    async with http_door(ScriptedService()) as url:
        answer = await post(url, {**HELLO, "stream": True, "return_token_ids": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-request-id"].startswith("req-")
    lines = events(answer.text)
    assert lines[-1] == "[DONE]"
    chunks = [json.loads(line) for line in lines[:-1]]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    ids = [token for chunk in chunks[1:] for token in chunk["choices"][0]["token_ids"]]
    assert ids == [token_id(word) for word in ("one", "two", "three")]


async def test_length_and_defaults():
    service = ScriptedService()
    async with http_door(service) as url:
        answer = await post(url, {**HELLO, "max_completion_tokens": 2, "stop": None, "seed": None})
    assert answer.json()["choices"][0]["finish_reason"] == "length"
    request = service.requests[0]
    assert request.sampling.temperature == 1.0, "OpenAI's default"
    assert request.stop.max_tokens == 2 and request.stop.token_ids == (256,)
    assert request.slo.name == "batch" and request.tenant == "public"


async def test_options_reach_the_request():
    service = ScriptedService()
    body = {
        **HELLO,
        "top_p": 0.5,
        "top_k": -1,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "presence_penalty": -1,
        "frequency_penalty": 2,
        "stop": ["a", "bb"],
        "stop_token_ids": [5],
        "ignore_eos": True,
        "timeout_s": 5,
        "slo": {"ttft_ms": 100},
    }
    async with http_door(service) as url:
        before = time.monotonic()
        answer = await post(url, body)
        after = time.monotonic()
    assert answer.status_code == 200
    request = service.requests[0]
    sampling = request.sampling
    assert (sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0, 0.1)
    assert (sampling.repetition_penalty, sampling.presence_penalty) == (1.1, -1)
    assert sampling.frequency_penalty == 2 and sampling.logprobs == -1
    assert request.stop.token_ids == (5,) and request.stop.strings == ("a", "bb")
    assert before + 5 <= request.deadline_s <= after + 5
    assert (request.slo.name, request.slo.ttft_s, request.slo.tpot_s) == ("custom", 0.1, None)


async def test_pictures():
    service = ScriptedService()
    async with http_door(service) as url:
        answer = await post(url, picture_body(data_url(png(30, 17))))
    assert answer.status_code == 200, answer.text
    (picture,) = service.requests[0].pictures
    assert (picture.format, picture.width, picture.height) == ("PNG", 30, 17)
    assert picture.data == png(30, 17)


async def test_unknown_fields_are_named():
    body = {**HELLO, "logit_bias": {}, "user": "x", "bad\r\nx-evil: 1": 1, "ünï": 2, "a" * 500: 3}
    async with http_door(ScriptedService()) as url:
        answer = await post(url, body)
        clean = await post(url, HELLO)
    names = answer.headers["x-triptych-ignored"].split(", ")
    assert names == ["logit_bias", "user", "a" * 64]
    assert "x-evil" not in answer.headers
    assert "x-triptych-ignored" not in clean.headers


async def test_refusal_comes_before_the_body():
    service = ScriptedService(places=0)
    large = json.dumps({**HELLO, "pad": "x" * 20_000_000}).encode()
    async with http_door(service) as url, httpx.AsyncClient(base_url=url, timeout=20) as client:
        await client.get("/live")
        for content in (json.dumps(HELLO).encode(), large):
            answer = await client.post("/v1/chat/completions", content=content)
            assert answer.status_code == 429
            assert answer.headers["retry-after"] == "3"
            assert answer.json()["error"]["code"] == "overloaded"
        async with bare_connection(url) as (reader, writer):
            writer.write(post_bytes(b"", 1000))  # the body never comes
            async with asyncio.timeout(PATIENCE_S):
                assert b" 429 " in await reader.readline()
        with pytest.raises(openai.RateLimitError):
            async with client_of(url) as official:
                await official.chat.completions.create(model="scripted", messages=HELLO["messages"])
    assert service.requests == []


async def test_keys():
    service = ScriptedService()
    keys = {"key-a": "alice", "key-b": "bob"}
    async with http_door(service, keys) as url, httpx.AsyncClient(base_url=url) as client:
        for path in ("/v1/models", "/metrics", "/nothing", "/v1/chat/completions"):
            for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "key-a"}):
                answer = await client.get(path, headers=headers)
                assert answer.status_code == 401, path
                assert answer.json()["error"]["code"] == "invalid_api_key"
        assert (await client.post("/v1/chat/completions", json=HELLO)).status_code == 401
        for path in ("/live", "/health", "/ready"):
            assert (await client.get(path)).status_code == 200
        good = {"authorization": "Bearer key-b"}
        assert (await client.get("/metrics", headers=good)).text == "triptych_up 1\n"
        await client.post("/v1/chat/completions", json=HELLO, headers=good)
        service.ready = False
        assert (await client.get("/ready")).status_code == 503
        assert (await client.get("/live")).status_code == 200
    assert [request.tenant for request in service.requests] == ["bob"]


async def test_unknown_paths_and_methods():
    async with http_door(ScriptedService()) as url, httpx.AsyncClient(base_url=url) as client:
        for method, path in (("GET", "/v1"), ("GET", "/v1/chat/completions"), ("PUT", "/live")):
            answer = await client.request(method, path)
            assert answer.status_code == 404
            assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("stream", [True, False])
async def test_disconnect_cancels(stream):
    service = ScriptedService(pause_s=0.05, repeat=1000)
    body = json.dumps({**HELLO, "stream": stream, "max_tokens": 3000}).encode()
    async with http_door(service) as url:
        async with bare_connection(url) as (reader, writer):
            writer.write(post_bytes(body))
            await until(lambda: service.num_produced > 2)
            if stream:
                assert b"200 OK" in await reader.read(100)
        await until(lambda: service.num_tickets == 0)
    assert service.ended == ["cancelled"]


async def test_disconnect_while_sending_the_body():
    service = ScriptedService()
    async with http_door(service) as url:
        async with bare_connection(url) as (_, writer):
            writer.write(post_bytes(b"{", 1000))
            await until(lambda: service.num_tickets == 1)
        await until(lambda: service.num_tickets == 0)
    assert service.requests == []


async def test_client_that_sends_nothing_is_cut_off():
    service = ScriptedService()
    async with (
        http_door(service, write_stall_s=0.2) as url,
        bare_connection(url) as (reader, writer),
    ):
        writer.write(post_bytes(b"{", 1000))
        await until(lambda: service.num_tickets == 1)
        await until(lambda: service.num_tickets == 0)
        async with asyncio.timeout(PATIENCE_S):
            answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 400 ") and b"did not arrive within" in answer


async def test_body_that_trickles_is_cut_off():
    service = ScriptedService()
    async with (
        http_door(service, write_stall_s=0.4) as url,
        bare_connection(url) as (reader, writer),
    ):
        writer.write(post_bytes(b"{", 1000))
        await until(lambda: service.num_tickets == 1)
        trickle = asyncio.create_task(_trickle(writer))
        async with asyncio.timeout(PATIENCE_S):
            head = await reader.readuntil(b"\r\n\r\n")
            assert service.num_tickets == 0
            # Long after the answer has left, it can still be read: no reset has overtaken it.
            await asyncio.sleep(0.3)
            length = int(re.search(rb"content-length: (\d+)", head)[1])
            answer = await reader.readexactly(length)
            with contextlib.suppress(ConnectionError):  # it still sends when the end comes
                assert await reader.read() == b""
        trickle.cancel()
    assert head.startswith(b"HTTP/1.1 400 ") and b"connection: close" in head
    assert b"did not arrive within" in answer
    assert service.requests == []


async def _trickle(writer):
    for _ in range(400):
        await asyncio.sleep(0.01)
        writer.write(b" ")


async def test_client_that_reads_nothing_is_cut_off():
    service = ScriptedService(repeat=400_000)
    body = json.dumps({**HELLO, "stream": True, "max_tokens": 10**9}).encode()
    async with (
        http_door(service, write_stall_s=0.3, max_output_tokens=10**9) as url,
        bare_connection(url, limit=1024) as (_, writer),
    ):
        writer.write(post_bytes(body))
        await until(lambda: service.num_tickets == 1)
        await until(lambda: service.num_tickets == 0)
        assert service.num_produced < 200_000, "what nobody reads must not pile up"
        await until(lambda: not _is_established(url))
    assert service.ended == ["cancelled"]


def _is_established(url) -> bool:
    """Whether the server's end of any connection to ``url`` is still there."""
    port = f":{int(url.rpartition(':')[2]):04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(row[1].endswith(port) and row[3] == "01" for row in rows)


@pytest.mark.parametrize("fail_at", [0, 1, 2])
async def test_failure_in_a_stream_is_an_error_event_and_never_done(fail_at):
    error = InstanceLost("lost decode-0 at 10.0.0.1:555 /tmp/x 0xdead")
    service = ScriptedService(fail_at=fail_at, error=error)
    async with http_door(service) as url:
        answer = await post(url, {**HELLO, "stream": True})
        if fail_at == 0:
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "instance_lost"
        else:
            assert answer.status_code == 200
            lines = events(answer.text)
            assert "[DONE]" not in lines
            assert json.loads(lines[-1])["error"]["code"] == "instance_lost"
        assert "10.0.0.1" not in answer.text and "0xdead" not in answer.text
        async with client_of(url) as client:
            with pytest.raises(openai.APIError, match="an instance was lost"):
                stream = await client.chat.completions.create(
                    model="scripted", messages=HELLO["messages"], stream=True
                )
                async for _ in stream:
                    pass
    assert service.num_tickets == 0


async def test_a_bug_is_a_typed_error(caplog):
    service = ScriptedService(fail_at=1, error=ZeroDivisionError("secret /etc/passwd"))
    async with http_door(service) as url:
        answer = await post(url, HELLO)
    assert answer.status_code == 500
    assert answer.json()["error"] == {
        "message": "internal error",
        "type": "server_error",
        "param": None,
        "code": "internal",
    }
    assert "ZeroDivisionError" in caplog.text


async def test_connections_are_kept():
    service = ScriptedService()
    async with http_door(service) as url:
        limits = httpx.Limits(max_connections=1)
        async with httpx.AsyncClient(base_url=url, limits=limits) as client:
            for stream in (True, False, True):
                answer = await client.post("/v1/chat/completions", json={**HELLO, "stream": stream})
                assert answer.status_code == 200
                bad = await client.post("/v1/chat/completions", content=b"{")
                assert bad.status_code == 400
    assert service.ended == ["completed"] * 3


async def test_many_at_once_answered_or_refused():
    service = ScriptedService(places=20, pause_s=0.01)
    async with http_door(service) as url, httpx.AsyncClient(base_url=url, timeout=30) as client:

        async def ask(index):
            body = {**HELLO, "stream": index % 2 == 0}
            return (await client.post("/v1/chat/completions", json=body)).status_code

        codes = await asyncio.gather(*(ask(index) for index in range(80)))
    assert set(codes) <= {200, 429}
    assert codes.count(200) == len(service.ended) >= 20
    assert service.num_tickets == 0
