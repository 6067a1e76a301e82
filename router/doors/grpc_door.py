"""The gRPC door: ``triptych.v1.Inference``, standard health and reflection.

The call's deadline and cancellation are the request's. Knows ``answer.Service``; no stage.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from router.answer import Delta, Final, Service, Ticket, TokenInfo
from router.doors.auth import ApiKeys
from router.doors.intake import Intake, Options, convert_options, laxest
from triptych.core.errors import (
    Cancelled,
    ConfigError,
    InvariantBroken,
    RequestError,
    TriptychError,
)
from triptych.core.ids import RequestId, TenantId
from triptych.core.request import ImagePart, Message, Part, Picture, Request, Slo, TextPart
from triptych.v1 import inference_pb2 as pb
from triptych.wire.status import grpc_status, trailers

log = logging.getLogger(__name__)

SERVICE = "triptych.v1.Inference"
_MAX_METADATA_BYTES = 16_384
_MAX_STREAMS = 4096
_HEALTH_PERIOD_S = 1.0


class GrpcDoor:
    """The door and its server; ``address`` is ``host:port`` as bound, known after ``start``."""

    def __init__(self, service: Service, intake: Intake, keys: ApiKeys, address: str) -> None:
        self.address = address
        limit = intake.limits.max_body_bytes
        self._server = grpc.aio.server(
            options=(
                ("grpc.max_receive_message_length", limit),
                ("grpc.max_metadata_size", _MAX_METADATA_BYTES),
                ("grpc.max_concurrent_streams", _MAX_STREAMS),
                ("grpc.so_reuseport", 0),
            ),
        )
        door = _Door(service, intake, keys)
        self._server.add_generic_rpc_handlers((door.handlers(),))
        health_pb2_grpc.add_HealthServicer_to_server(_Health(service), self._server)
        names = (SERVICE, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name)
        reflection.enable_server_reflection((*names, reflection.SERVICE_NAME), self._server)

    async def start(self) -> None:
        """Return when calls are accepted; ConfigError if the address cannot be had."""
        try:
            port = self._server.add_insecure_port(self.address)
        except RuntimeError as error:
            raise ConfigError(f"router.grpc: cannot listen on {self.address!r}") from error
        self.address = f"{self.address.rpartition(':')[0]}:{port}"
        await self._server.start()

    async def close(self, drain_s: float = 0.0) -> None:
        """Accept no more, give calls in flight ``drain_s`` seconds, cancel what is left."""
        await self._server.stop(drain_s)


class _Door:
    """The three methods."""

    def __init__(self, service: Service, intake: Intake, keys: ApiKeys) -> None:
        self._service = service
        self._intake = intake
        self._keys = keys

    def handlers(self) -> grpc.GenericRpcHandler:
        """The service. ``Generate`` reads its one message itself, behind the ticket."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Generate": grpc.stream_stream_rpc_method_handler(
                    self._generate,
                    request_deserializer=pb.GenerateRequest.FromString,
                    response_serializer=pb.GenerateResponse.SerializeToString,
                ),
                "Cancel": grpc.unary_unary_rpc_method_handler(
                    self._cancel,
                    request_deserializer=pb.CancelGenerateRequest.FromString,
                    response_serializer=pb.CancelGenerateResponse.SerializeToString,
                ),
                "ListModels": grpc.unary_unary_rpc_method_handler(
                    self._list_models,
                    request_deserializer=pb.ListModelsRequest.FromString,
                    response_serializer=pb.ListModelsResponse.SerializeToString,
                ),
            },
        )

    async def _generate(
        self, messages: AsyncIterator[pb.GenerateRequest], context: grpc.aio.ServicerContext
    ) -> None:
        async with _typed_errors(context):
            ticket = self._service.admit(self._tenant(context))
            try:
                await self._answer(messages, context, ticket)
            finally:
                ticket.release()

    async def _answer(
        self,
        messages: AsyncIterator[pb.GenerateRequest],
        context: grpc.aio.ServicerContext,
        ticket: Ticket,
    ) -> None:
        message, tenant = await self._message(messages), self._tenant(context)
        if self._service.is_choosy and (slo := _peek_slo(message)) is not None:
            self._service.check(tenant, slo, ticket)
        request = await asyncio.to_thread(self._request, message, tenant, context.time_remaining())
        await self._write(context, pb.GenerateResponse(started=pb.Started(request_id=request.id)))
        reasons = [""] * request.num_choices
        async with aclosing(self._service.generate(request, ticket)) as parts:
            async for part in parts:
                if isinstance(part, Delta):
                    reasons[part.choice] = part.finish_reason or ""
                    await self._write(context, pb.GenerateResponse(delta=_delta(part)))
                else:
                    await self._write(context, pb.GenerateResponse(result=_result(part, reasons)))

    async def _message(self, messages: AsyncIterator[pb.GenerateRequest]) -> pb.GenerateRequest:
        """The call's one message; who sends none holds a ticket no longer than a stalled writer."""
        stall_s = self._intake.limits.write_stall_s
        try:
            async with asyncio.timeout(stall_s):
                message = await anext(aiter(messages), None)
        except TimeoutError:
            raise RequestError(f"the message did not arrive within {stall_s:g} s") from None
        if message is None:
            raise RequestError("a request message is required")
        return message

    async def _write(self, context: grpc.aio.ServicerContext, message: pb.GenerateResponse) -> None:
        """Send; a client that reads nothing for too long is cut off."""
        stall_s = self._intake.limits.write_stall_s
        try:
            async with asyncio.timeout(stall_s):
                await context.write(message)
        except TimeoutError:
            raise _Stalled("reads nothing") from None

    async def _cancel(
        self, request: pb.CancelGenerateRequest, context: grpc.aio.ServicerContext
    ) -> pb.CancelGenerateResponse:
        async with _typed_errors(context):
            tenant = self._tenant(context)
            was_running = await self._service.cancel(RequestId(request.request_id), tenant)
        return pb.CancelGenerateResponse(was_running=was_running)

    async def _list_models(
        self, _request: pb.ListModelsRequest, context: grpc.aio.ServicerContext
    ) -> pb.ListModelsResponse:
        async with _typed_errors(context):
            self._tenant(context)
        model = pb.Model(name=self._service.model, max_tokens=self._intake.max_positions)
        return pb.ListModelsResponse(models=[model])

    def _tenant(self, context: grpc.aio.ServicerContext) -> TenantId:
        metadata = dict(context.invocation_metadata() or ())
        value = metadata.get("authorization")
        return self._keys.tenant(value if isinstance(value, str) else None)

    def _request(
        self, message: pb.GenerateRequest, tenant: TenantId, remaining_s: float | None
    ) -> Request:
        """The request of a message. In a thread: headers of pictures are read here."""
        if message.model and message.model != self._service.model:
            raise RequestError("no such model", field="model", status="not_found")
        messages = self._intake.messages(_messages(message))
        pictures = tuple(self._pictures(message))
        timeout_s = None
        if remaining_s is not None:
            timeout_s = max(1e-3, min(remaining_s, self._intake.limits.max_deadline_s))
        sampling = message.sampling
        logprobs = sampling.logprobs if sampling.HasField("logprobs") else -1
        options = _options(message, timeout_s)
        return self._intake.request(tenant, messages, pictures, options, logprobs)

    def _pictures(self, message: pb.GenerateRequest) -> Iterable[Picture]:
        for i, turn in enumerate(message.messages):
            for j, part in enumerate(turn.parts):
                if part.WhichOneof("kind") == "picture":
                    field = f"messages[{i}].parts[{j}].picture"
                    yield self._intake.picture(part.picture, field)


class _Stalled(Cancelled):
    """The client takes no byte any more."""


class _Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """grpc.health.v1: whether every stage serves. Needs no key."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def Check(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext
    ) -> health_pb2.HealthCheckResponse:
        """The status now."""
        if request.service not in ("", SERVICE):
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        return self._status()

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """The status now and whenever it changes."""
        del context
        if request.service not in ("", SERVICE):
            unknown = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
            yield health_pb2.HealthCheckResponse(status=unknown)
            return
        last: health_pb2.HealthCheckResponse | None = None
        while True:
            now = self._status()
            if now != last:
                yield now
                last = now
            await asyncio.sleep(_HEALTH_PERIOD_S)

    def _status(self) -> health_pb2.HealthCheckResponse:
        kinds = health_pb2.HealthCheckResponse
        return kinds(status=kinds.SERVING if self._service.is_ready() else kinds.NOT_SERVING)


@asynccontextmanager
async def _typed_errors(context: grpc.aio.ServicerContext) -> AsyncIterator[None]:
    """End the call with the status, public text and trailers of what is raised inside."""
    try:
        yield
    except _Stalled as error:
        log.info("client gone: %s", error)
        # Its last write stands in the way of a status; the call ends all the same.
        with suppress(grpc.aio.InternalError):
            await _abort(context, error)
    except TriptychError as error:
        await _abort(context, error)
    except Exception:
        # The last guard: whatever a bug raises, the client gets a typed error, the log the bug.
        if context.done():
            raise
        log.exception("a call failed")
        await _abort(context, InvariantBroken())


async def _abort(context: grpc.aio.ServicerContext, error: TriptychError) -> None:
    await context.abort(grpc_status(error), error.public, trailers(error))


def _messages(message: pb.GenerateRequest) -> list[Message]:
    """Messages with their pictures numbered in order."""
    messages = []
    num_pictures = 0
    for i, turn in enumerate(message.messages):
        parts: list[Part] = []
        for j, part in enumerate(turn.parts):
            match part.WhichOneof("kind"):
                case "text":
                    parts.append(TextPart(part.text))
                case "picture":
                    parts.append(ImagePart(num_pictures))
                    num_pictures += 1
                case _:
                    raise RequestError("is empty", field=f"messages[{i}].parts[{j}]")
        messages.append(Message(turn.role, tuple(parts)))
    return messages


def _options(message: pb.GenerateRequest, timeout_s: float | None) -> Options:
    """The message's options; what is not set keeps its default."""
    values: dict[str, Any] = {
        field.name: value
        for field, value in message.sampling.ListFields()
        if field.name != "logprobs"
    }
    if message.HasField("max_tokens"):
        values["max_tokens"] = message.max_tokens
    if message.HasField("num_choices"):
        values["n"] = message.num_choices
    if message.HasField("slo"):
        values["slo"] = _slo_values(message)
    values["stop"] = list(message.stop)
    values["stop_token_ids"] = list(message.stop_token_ids)
    values["ignore_eos"] = message.ignore_eos
    values["timeout_s"] = timeout_s
    values["priority"] = message.priority
    return convert_options(values)


def _slo_values(message: pb.GenerateRequest) -> dict[str, Any]:
    slo: dict[str, Any] = {field.name: value for field, value in message.slo.ListFields()}
    if "name" in slo:
        slo["class"] = slo.pop("name")
    return slo


def _peek_slo(message: pb.GenerateRequest) -> Slo | None:
    """The bounds that a message names; None where they are wrong, which is told later."""
    try:
        return laxest(convert_options({"slo": _slo_values(message)}).slo)
    except RequestError:
        return None


def _delta(delta: Delta) -> pb.TextDelta:
    return pb.TextDelta(
        choice=delta.choice,
        text=delta.text,
        tokens=[_token(token) for token in delta.tokens],
        finish_reason=delta.finish_reason or "",
    )


def _token(token: TokenInfo) -> pb.OutputToken:
    return pb.OutputToken(
        id=token.id,
        raw=token.raw,
        logprob=token.logprob,
        top=[_token(alternative) for alternative in token.top],
    )


def _result(final: Final, reasons: list[str]) -> pb.GenerateResult:
    usage, times = final.usage, final.timeline
    return pb.GenerateResult(
        finish_reasons=reasons,
        usage=pb.Usage(**{name: getattr(usage, name) for name in usage.__struct_fields__}),
        timeline=pb.Timeline(**{name: getattr(times, name) for name in times.__struct_fields__}),
    )
