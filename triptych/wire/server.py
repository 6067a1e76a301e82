"""The gRPC server that every instance runs: authentication, limits, error mapping, and the
``Instance`` service itself. The three stage services are added by the ``*_service`` packages.

Knows ``core.ports.Instance``; does not know what stands behind it.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Never, TypeVar

import grpc
import msgspec

from triptych.core.errors import InvariantBroken, TriptychError, Unauthenticated
from triptych.core.ids import JobId, SessionId
from triptych.core.ports import Instance
from triptych.v1 import stage_pb2 as pb
from triptych.v1 import stage_pb2_grpc
from triptych.wire import auth, convert
from triptych.wire.status import grpc_status, trailers

T = TypeVar("T")


class ServerLimits(msgspec.Struct, frozen=True):
    """Bounds of one server."""

    max_message_bytes: int
    max_streams: int = 4096
    ping_s: float = 10.0
    """A connection that was quiet for this long is pinged ..."""
    pong_s: float = 20.0
    """... and ends, with all its sessions, when no answer comes: a router's machine may vanish
    without a word. Longer than a router is likely to stand still."""


def make_server(secret: bytes, limits: ServerLimits) -> grpc.aio.Server:
    """A server that refuses every call without the cluster's token before it reads a message."""
    return grpc.aio.server(
        interceptors=(_TokenInterceptor(auth.token(secret)),),
        options=(
            ("grpc.max_receive_message_length", limits.max_message_bytes),
            ("grpc.max_concurrent_streams", limits.max_streams),
            ("grpc.max_metadata_size", 16_384),
            ("grpc.so_reuseport", 0),
            ("grpc.keepalive_time_ms", round(limits.ping_s * 1000)),
            ("grpc.keepalive_timeout_ms", round(limits.pong_s * 1000)),
            ("grpc.http2.ping_timeout_ms", round(limits.pong_s * 1000)),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.http2.min_ping_interval_without_data_ms", 1000),
        ),
    )


async def abort(context: grpc.aio.ServicerContext, error: TriptychError) -> Never:
    """End a call with the status, the detail and the trailers of ``error``."""
    await context.abort(grpc_status(error), str(error), trailers(error))
    raise InvariantBroken("abort returned")


async def accept(
    context: grpc.aio.ServicerContext, job: Callable[[], T], submit: Callable[[T], Awaitable[None]]
) -> pb.Accepted:
    """Convert a job message and submit it: what the three stage servicers share."""
    try:
        await submit(job())
    except TriptychError as error:
        await abort(context, error)
    return pb.Accepted()


class InstanceServicer(stage_pb2_grpc.InstanceServicer):
    """``triptych.v1.Instance`` over an instance in this process."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance

    async def Describe(  # noqa: N802
        self, _request: pb.DescribeRequest, _context: grpc.aio.ServicerContext
    ) -> pb.Description:
        """What the instance says of itself."""
        return convert.encode_description(await self._instance.describe())

    async def Open(  # noqa: N802
        self, request: pb.OpenRequest, context: grpc.aio.ServicerContext
    ) -> None:
        """One router's events. A broken stream closes the instance's iterator, here and now."""
        batches = self._instance.open(SessionId(request.session))
        try:
            async for batch in batches:
                await context.write(convert.encode_batch(batch))
        except TriptychError as error:
            await abort(context, error)
        finally:
            await batches.aclose()

    async def Lend(  # noqa: N802
        self, request: pb.LendJob, context: grpc.aio.ServicerContext
    ) -> pb.Accepted:
        """Lend a cached prefix to another instance."""
        return await accept(
            context, lambda: convert.decode_lend_job(request), self._instance.submit
        )

    async def Resync(  # noqa: N802
        self, request: pb.ResyncRequest, context: grpc.aio.ServicerContext
    ) -> pb.ResyncResponse:
        """Tell a session of all caches again."""
        try:
            await self._instance.resync(SessionId(request.session))
        except TriptychError as error:
            await abort(context, error)
        return pb.ResyncResponse()

    async def Cancel(  # noqa: N802
        self, request: pb.CancelRequest, context: grpc.aio.ServicerContext
    ) -> pb.CancelResponse:
        """End jobs; returns when they hold nothing."""
        try:
            await self._instance.cancel([JobId(job) for job in request.jobs])
        except TriptychError as error:
            await abort(context, error)
        return pb.CancelResponse()

    async def Census(  # noqa: N802
        self, _request: pb.CensusRequest, _context: grpc.aio.ServicerContext
    ) -> pb.CensusResponse:
        """Who holds what."""
        return convert.encode_census(await self._instance.census())

    async def Drain(  # noqa: N802
        self, request: pb.DrainRequest, _context: grpc.aio.ServicerContext
    ) -> pb.DrainResponse:
        """Stop taking jobs and wait."""
        return pb.DrainResponse(is_idle=await self._instance.drain(request.timeout_s))


def add_instance(server: grpc.aio.Server, instance: Instance) -> None:
    """Serve ``triptych.v1.Instance``."""
    servicer = InstanceServicer(instance)
    stage_pb2_grpc.add_InstanceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]


class _TokenInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Deny by default: no method is exempt."""

    def __init__(self, expected: str) -> None:
        self._expected = expected

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        """Let the call through if its token is right; otherwise answer UNAUTHENTICATED."""
        given = dict(handler_call_details.invocation_metadata).get(auth.METADATA_KEY, "")
        if auth.is_token(given, self._expected):
            return await continuation(handler_call_details)
        return grpc.unary_unary_rpc_method_handler(_refuse)


async def _refuse(_request: bytes, context: grpc.aio.ServicerContext) -> Never:
    await abort(context, Unauthenticated())
