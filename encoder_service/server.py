"""gRPC words of the encode stage: one call, one conversion. Knows no queue, no engine."""

from collections.abc import Awaitable, Callable

import grpc

from triptych.core.handoff import EncodeJob
from triptych.v1 import stage_pb2 as pb
from triptych.v1 import stage_pb2_grpc
from triptych.wire import convert
from triptych.wire.server import accept


class EncoderServicer(stage_pb2_grpc.EncoderServicer):
    """``triptych.v1.Encoder``."""

    def __init__(self, submit: Callable[[EncodeJob], Awaitable[None]]) -> None:
        self._submit = submit

    async def Encode(  # noqa: N802
        self, request: pb.EncodeJob, context: grpc.aio.ServicerContext
    ) -> pb.Accepted:
        """Accept a job; its events follow on the session."""
        return await accept(context, lambda: convert.decode_encode_job(request), self._submit)


def add_encoder(server: grpc.aio.Server, submit: Callable[[EncodeJob], Awaitable[None]]) -> None:
    """Serve ``triptych.v1.Encoder``; ``submit`` takes the job or raises why not."""
    servicer = EncoderServicer(submit)
    stage_pb2_grpc.add_EncoderServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
