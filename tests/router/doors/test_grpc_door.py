"""The gRPC door over real sockets: own clients, a reflection client, health, deadlines."""

import asyncio
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.patience import PATIENCE_S
from tests.router.doors.scripted import ScriptedService, grpc_door, token_id, until
from tests.router.doors.test_http_door import png
from triptych.client import AsyncClient, Client
from triptych.core.errors import (
    Cancelled,
    DeadlineExceeded,
    InstanceLost,
    InvariantBroken,
    Overloaded,
    RequestError,
    TransferError,
    TriptychError,
    Unauthenticated,
    Unavailable,
)
from triptych.v1 import inference_pb2 as pb


async def test_async_client():
    service = ScriptedService()
    async with grpc_door(service) as address, AsyncClient(address) as client:
        answer = client.generate(
            "one two three", [png(30, 17)], seed=3, logprobs=2, num_choices=2, slo="strict",
            tpot_ms=40, system="be brief", stop=["x"], ignore_eos=True, max_tokens=9,
        )  # fmt: skip
        parts = [part async for part in answer]
        assert await client.list_models() == ("scripted",)
    assert answer.request_id == service.requests[0].id
    assert parts[-1].final == answer.final
    final = answer.final
    assert final.finish_reasons == ("stop", "stop")
    assert (final.usage.prompt_tokens, final.usage.completion_tokens) == (11, 6)
    assert final.usage.image_tokens == 4
    assert final.timeline.kv_transfer_s == 0.005 and final.timeline.route == ("p@0", "d@0")
    for choice in range(2):
        own = [part for part in parts[:-1] if part.choice == choice]
        assert "".join(part.text for part in own) == "onetwothree"
        tokens = [token for part in own for token in part.tokens]
        assert [token.id for token in tokens] == [token_id(w) for w in ("one", "two", "three")]
        assert [token.raw for token in tokens] == [b"one", b"two", b"three"]
        assert [top.logprob for top in tokens[0].top] == [-1.5, -2.5]
    request = service.requests[0]
    assert request.sampling.temperature == 0 and request.sampling.seed == 3
    assert [message.role for message in request.messages] == ["system", "user"]
    assert request.pictures[0].width == 30
    assert (request.slo.name, request.slo.tpot_s) == ("strict", 0.04)
    assert request.stop.token_ids == () and request.stop.strings == ("x",)
    assert service.num_tickets == 0


async def test_sync_client(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(png())
    async with grpc_door(ScriptedService()) as address:

        def ask():
            with Client(address) as client:
                answer = client.generate("one two three", [path, str(path)], max_tokens=2)
                return answer.text(), answer.final, client.list_models(), client.cancel("req-no")

        text, final, models, was_running = await asyncio.to_thread(ask)
    assert text == "onetwo"
    assert final.finish_reasons == ("length",) and final.usage.image_tokens == 8
    assert models == ("scripted",) and was_running is False


async def test_reflection_client():
    from grpc_requests import Client as ReflectionClient

    async with grpc_door(ScriptedService()) as address:

        def ask():
            client = ReflectionClient(address)
            service = client.service("triptych.v1.Inference")
            message = {
                "messages": [{"role": "user", "parts": [{"text": "one two"}]}],
                "sampling": {"temperature": 0.5},
            }
            answers = list(service.Generate(message))
            client.__exit__(None, None, None)
            return list(client.service_names), answers

        names, answers = await asyncio.to_thread(ask)
    assert "triptych.v1.Inference" in names and "grpc.health.v1.Health" in names
    assert answers[0]["started"]["request_id"].startswith("req-")
    assert "".join(answer.get("delta", {}).get("text", "") for answer in answers) == "onetwo"
    assert answers[-1]["result"]["usage"]["completion_tokens"] == 2


async def test_health():
    service = ScriptedService()
    async with grpc_door(service, {"key": "t"}) as address:
        async with grpc.aio.insecure_channel(address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            serving = health_pb2.HealthCheckResponse.SERVING
            for name in ("", "triptych.v1.Inference"):
                answer = await stub.Check(health_pb2.HealthCheckRequest(service=name))
                assert answer.status == serving
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Check(health_pb2.HealthCheckRequest(service="other"))
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
            watch = stub.Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == serving
            service.ready = False
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            watch.cancel()


async def test_keys():
    service = ScriptedService()
    async with grpc_door(service, {"key-a": "alice"}) as address:
        for key in ("", "wrong"):
            async with AsyncClient(address, api_key=key) as client:
                for call in (client.list_models(), client.cancel("x"), client.generate("a").text()):
                    with pytest.raises(Unauthenticated):
                        await call
        async with AsyncClient(address, api_key="key-a") as client:
            assert await client.generate("a").text() == "a"
    assert [request.tenant for request in service.requests] == ["alice"]


@pytest.mark.parametrize(
    "error",
    [
        InstanceLost("/tmp/x 0xdead"),
        TransferError("/tmp/x"),
        Unavailable("/tmp/x"),
        DeadlineExceeded("/tmp/x"),
        Cancelled("/tmp/x"),
        InvariantBroken("/tmp/x"),
        Overloaded("/tmp/x", retry_after_s=7),
        RequestError("is wrong", field="messages[3]"),
        ZeroDivisionError("/tmp/x"),
    ],
)
@pytest.mark.parametrize("fail_at", [0, 2])
async def test_errors_are_typed_and_public(error, fail_at):
    service = ScriptedService(fail_at=fail_at, error=error)
    async with grpc_door(service) as address, AsyncClient(address) as client:
        expected = InvariantBroken if isinstance(error, ZeroDivisionError) else type(error)
        with pytest.raises(expected) as caught:
            await client.generate("one two three").text()
    assert "/tmp" not in str(caught.value) and "0x" not in str(caught.value)
    if isinstance(error, Overloaded):
        assert caught.value.retry_after_s == 7
    if isinstance(error, RequestError):
        assert caught.value.field == "messages[3]"
    assert service.num_tickets == 0


async def test_refusal_comes_before_the_message():
    service = ScriptedService(places=0)
    async with grpc_door(service) as address, AsyncClient(address) as client:
        with pytest.raises(Overloaded) as caught:
            await client.generate("x").text()
        assert caught.value.retry_after_s == 3
        async with grpc.aio.insecure_channel(address) as channel:
            call = channel.stream_stream("/triptych.v1.Inference/Generate")()
            async with asyncio.timeout(PATIENCE_S):  # the message never comes
                assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert service.requests == []


async def test_call_that_sends_no_message_is_cut_off():
    service = ScriptedService(places=1)
    async with (
        grpc_door(service, write_stall_s=0.2) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        call = channel.stream_stream("/triptych.v1.Inference/Generate")()
        await until(lambda: service.num_tickets == 1)
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "did not arrive within 0.2 s" in await call.details()
        assert service.num_tickets == 0


async def test_call_cancelled_by_the_client():
    service = ScriptedService(pause_s=0.02, repeat=1000)
    async with grpc_door(service) as address, AsyncClient(address) as client:
        answer = client.generate("one two three", max_tokens=3000)
        await anext(answer)
        answer.close()
        await until(lambda: service.num_tickets == 0)
    assert service.ended == ["cancelled"]


async def test_cancel_from_another_call():
    service = ScriptedService(pause_s=0.02, repeat=1000)
    async with grpc_door(service) as address, AsyncClient(address) as client:
        answer = client.generate("one two three", max_tokens=3000)
        await anext(answer)
        assert await client.cancel(answer.request_id) is True
        with pytest.raises(Cancelled):
            await answer.text()
        assert await client.cancel(answer.request_id) is False
    assert service.num_tickets == 0


async def test_deadline_of_the_call():
    service = ScriptedService(pause_s=0.05, repeat=1000)
    async with grpc_door(service) as address, AsyncClient(address) as client:
        before = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            await client.generate("one two three", max_tokens=3000, timeout_s=0.4).text()
        await until(lambda: service.num_tickets == 0)
        after = time.monotonic()
    assert before < service.requests[0].deadline_s < after + 1, "the call's, which has passed"


async def test_server_that_is_not_there():
    async with AsyncClient("127.0.0.1:1") as client:
        with pytest.raises(Unavailable, match="cannot be reached|onnect"):
            await client.generate("x", timeout_s=5).text()


async def test_reader_that_reads_nothing_is_cut_off():
    """Its words are long: a window of HTTP/2 grows to megabytes, which short ones fill slowly."""
    word = "w" * 3000
    service = ScriptedService(repeat=400_000)
    limits = {"write_stall_s": 0.3, "max_output_tokens": 10**9}
    async with grpc_door(service, **limits) as address, AsyncClient(address) as client:
        answer = client.generate(f"{word} {word} {word}", max_tokens=10**9)
        await anext(answer)
        await until(lambda: service.num_tickets == 0)
        assert service.num_produced * len(word) < 30_000_000, "a window of HTTP/2, not all of it"
        with pytest.raises(TriptychError):
            await answer.text()


def _request(**more):
    part = pb.ContentPart(text="hi")
    return pb.GenerateRequest(messages=[pb.ChatMessage(role="user", parts=[part])], **more)


def _sampling(**values):
    return _request(sampling=pb.SamplingOptions(**values))


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (pb.GenerateRequest(), "messages"),
        (_request(model="other"), "model"),
        (_request(max_tokens=0), "max_tokens"),
        (_request(max_tokens=2**31), "max_tokens"),
        (_request(num_choices=9), "n"),
        (_sampling(temperature=float("nan")), "temperature"),
        (_sampling(temperature=float("inf")), "temperature"),
        (_sampling(temperature=-1.0), "temperature"),
        (_sampling(top_p=0.0), "top_p"),
        (_sampling(repetition_penalty=0.0), "repetition_penalty"),
        (_sampling(logprobs=21), "top_logprobs"),
        (_request(stop=[""]), "stop"),
        (_request(stop=["x"] * 9), "stop"),
        (_request(stop=["x" * 257]), "stop"),
        (_request(stop_token_ids=[2**31]), "stop_token_ids[0]"),
        (_request(stop_token_ids=[999]), "stop_token_ids"),
        (_request(slo=pb.SloOptions(name="fast")), "slo.class"),
        (_request(slo=pb.SloOptions(ttft_ms=-1)), "slo.ttft_ms"),
        (_request(slo=pb.SloOptions(ttft_ms=float("nan"))), "slo.ttft_ms"),
        (
            pb.GenerateRequest(messages=[pb.ChatMessage(role="user", parts=[pb.ContentPart()])]),
            "messages[0].parts[0]",
        ),
        (
            pb.GenerateRequest(
                messages=[pb.ChatMessage(role="user", parts=[pb.ContentPart(picture=b"BM" * 50)])]
            ),
            "messages[0].parts[0].picture",
        ),
    ],
)
async def test_wrong_values_name_their_field(message, field):
    service = ScriptedService()
    async with grpc_door(service) as address, AsyncClient(address) as client:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in client._methods.generate(message):
                pass
    assert caught.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)
    assert dict(caught.value.trailing_metadata())["triptych-field"] == field
    assert service.requests == [] and service.num_tickets == 0


async def test_message_over_the_limit():
    service = ScriptedService()
    async with grpc_door(service, max_body_bytes=10_000) as address, AsyncClient(address) as client:
        with pytest.raises(Exception, match="larger than max|RESOURCE|limit"):
            await client.generate("x" * 20_000).text()
        await until(lambda: service.num_tickets == 0)
    assert service.requests == []
