"""gRPC words of the prefill stage: one call, one conversion. Knows no queue, no engine."""

from collections.abc import Awaitable, Callable

import grpc

from triptych.core.handoff import LanguageJob
from triptych.v1 import stage_pb2 as pb
from triptych.v1 import stage_pb2_grpc
from triptych.wire import convert
from triptych.wire.server import accept


class PrefillServicer(stage_pb2_grpc.PrefillServicer):
    """``triptych.v1.Prefill``."""

    def __init__(self, submit: Callable[[LanguageJob], Awaitable[None]]) -> None:
        self._submit = submit

    async def Prefill(  # noqa: N802
        self, request: pb.LanguageJob, context: grpc.aio.ServicerContext
    ) -> pb.Accepted:
        """Accept a job; its events follow on the session."""
        return await accept(context, lambda: convert.decode_language_job(request), self._submit)


def add_prefill(server: grpc.aio.Server, submit: Callable[[LanguageJob], Awaitable[None]]) -> None:
    """Serve ``triptych.v1.Prefill``; ``submit`` takes the job or raises why not."""
    servicer = PrefillServicer(submit)
    stage_pb2_grpc.add_PrefillServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
