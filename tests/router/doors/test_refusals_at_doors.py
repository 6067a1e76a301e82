"""Refusals by bounds over real sockets, before a real router: said before the rest is read, and as
they would be said behind it."""

import asyncio
import json

import grpc
import httpx
import msgspec
import pytest

from router.doors.openai_request import parse_chat, peek_slo
from tests.flow.harness import config, flow
from tests.router.doors.scripted import grpc_door, http_door, make_intake
from triptych.core.errors import Overloaded
from triptych.core.ids import TenantId
from triptych.core.request import Slo
from triptych.v1 import inference_pb2 as pb

SETTINGS = ('router.placement="slo"', 'admission.policy="slo"')
NEVER = {"ttft_ms": 1e-6, "tpot_ms": 1e-6}
WRONG_PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def asking(content="hello", **more) -> dict:
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 5, **more}


async def post(url, body, **more):
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        return await client.post("/v1/chat/completions", json=body, **more)


async def test_a_refusal_is_said_before_the_rest_is_read_and_the_same() -> None:
    async with flow(config("EPD1", *SETTINGS)) as running, http_door(running.core.service) as url:
        company = running.stream(running.request(["hi"], max_tokens=3000))
        await anext(company)
        early = await post(url, asking([WRONG_PICTURE], slo=NEVER))
        request = running.request(["hello"])
        request = msgspec.structs.replace(request, slo=Slo("custom", 1e-9, 1e-9))
        with pytest.raises(Overloaded) as behind:
            await running.tokens(request)
        assert early.status_code == 429, "and not 400 for a picture that nobody looked at"
        assert early.json()["error"]["code"] == "overloaded"
        assert early.json()["error"]["message"] == behind.value.public
        assert float(early.headers["retry-after"]) == behind.value.retry_after_s == 60.0
        assert running.core.ledger.outcomes == {"rejected:overloaded": 2}
        text = running.core.service.metrics().decode()
        assert 'triptych_router_requests_total{outcome="rejected:overloaded"} 2.0' in text
        await company.aclose()


async def test_who_may_be_let_in_is_read_to_the_end() -> None:
    async with flow(config("EPD1", *SETTINGS)) as running, http_door(running.core.service) as url:
        company = running.stream(running.request(["hi"], max_tokens=3000))
        await anext(company)
        degraded = await post(url, asking(slo={**NEVER, "degrade": True}))
        assert degraded.status_code == 200 and degraded.json()["triptych"]["degraded"] is True
        assert (await post(url, asking())).status_code == 200
        for slo in (None, {"ttft_ms": 1e9}, {"class": "none"}, {"ttft_ms": "soon"}):
            wrong = await post(url, asking([WRONG_PICTURE], slo=slo))
            assert wrong.status_code == 400, "what is wrong is said to whom there is room for"
        await company.aclose()


async def test_connections_live_on_behind_a_refusal() -> None:
    async with flow(config("EPD1", *SETTINGS)) as running, http_door(running.core.service) as url:
        company = running.stream(running.request(["hi"], max_tokens=3000))
        await anext(company)
        long = asking("x" * 200_000, slo=NEVER)
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            for body in (asking(slo=NEVER), long, asking(slo=NEVER)):
                answer = await client.post("/v1/chat/completions", json=body)
                assert (answer.status_code, answer.headers.get("connection")) == (429, None)
        await company.aclose()


async def test_grpc_refuses_as_early() -> None:
    async with (
        flow(config("EPD1", *SETTINGS)) as running,
        grpc_door(running.core.service) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        company = running.stream(running.request(["hi"], max_tokens=3000))
        await anext(company)
        part = pb.ContentPart(picture=b"no picture")
        message = pb.GenerateRequest(
            messages=[pb.ChatMessage(role="user", parts=[part])],
            slo=pb.SloOptions(ttft_ms=1e-6, tpot_ms=1e-6),
        )
        generate = channel.unary_stream(
            "/triptych.v1.Inference/Generate",
            request_serializer=pb.GenerateRequest.SerializeToString,
            response_deserializer=pb.GenerateResponse.FromString,
        )
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            async for _ in generate(message):
                pass
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert dict(refused.value.trailing_metadata())["retry-after"] == "60"
        await company.aclose()


@pytest.mark.parametrize(
    "slo",
    [
        None,
        {"class": "strict"},
        {"class": "interactive", "tpot_ms": 7},
        {"class": "multi-image", "ttft_ms": 70},
        {"ttft_ms": 17, "degrade": True},
    ],
)
def test_bounds_are_the_same_at_a_glance(slo) -> None:
    body = json.dumps(asking(slo=slo)).encode()
    whole = parse_chat(body, TenantId("t"), "m", make_intake())
    assert peek_slo(body) == whole.request.slo


def test_a_bound_that_counts_pictures_is_no_bound_yet() -> None:
    assert peek_slo(b'{"slo": {"class": "multi-image"}}') == Slo("multi-image", None, 0.05)


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b'{"slo": 7}', b'{"slo": {"class": "x"}}', b'{"slo": {"ttft_ms": -1}}',
     b'{"a": ' + b"[" * 100_000, b'{"a": \xff\xfe}', b'{"slo": null} x'],
)  # fmt: skip
def test_what_is_wrong_is_left_to_the_parser(body) -> None:
    assert peek_slo(body) is None


async def test_refused_or_served_every_ticket_is_given_back() -> None:
    async with flow(config("EPD1", *SETTINGS)) as running, http_door(running.core.service) as url:
        company = running.stream(running.request(["hi"], max_tokens=3000))
        await anext(company)
        answers = await asyncio.gather(*(post(url, asking(slo=NEVER)) for _ in range(7)))
        assert {answer.status_code for answer in answers} == {429}
        assert running.core.service._admission.num_taken == 1, "the one that is served"
        await company.aclose()
        assert running.core.service._admission.num_taken == 0
