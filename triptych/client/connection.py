"""What both clients share: channel options, methods, metadata, errors of calls."""

from typing import Any, NamedTuple

import grpc

from triptych.core.errors import InstanceLost, TriptychError, Unavailable
from triptych.v1 import inference_pb2 as pb
from triptych.wire.status import CODE_TRAILER, from_grpc

OPTIONS = (
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_reconnect_backoff_ms", 2000),
)

_SERVICE = "/triptych.v1.Inference/"


class Methods(NamedTuple):
    """The service's methods on one channel, synchronous or not as the channel is."""

    generate: Any
    cancel: Any
    list_models: Any


def methods(channel: Any) -> Methods:
    """Bind the methods to a channel."""
    return Methods(
        channel.unary_stream(
            _SERVICE + "Generate",
            request_serializer=pb.GenerateRequest.SerializeToString,
            response_deserializer=pb.GenerateResponse.FromString,
        ),
        channel.unary_unary(
            _SERVICE + "Cancel",
            request_serializer=pb.CancelGenerateRequest.SerializeToString,
            response_deserializer=pb.CancelGenerateResponse.FromString,
        ),
        channel.unary_unary(
            _SERVICE + "ListModels",
            request_serializer=pb.ListModelsRequest.SerializeToString,
            response_deserializer=pb.ListModelsResponse.FromString,
        ),
    )


def metadata(api_key: str) -> tuple[tuple[str, str], ...]:
    """Metadata of every call."""
    return (("authorization", f"Bearer {api_key}"),) if api_key else ()


def error_of(error: grpc.RpcError) -> TriptychError:
    """The project's error behind a failed call; without a word of the server's own, a lost
    connection is the server's absence and not an instance's."""
    found = from_grpc(error)
    trailers = dict(error.trailing_metadata() or ())
    if isinstance(found, InstanceLost) and CODE_TRAILER not in trailers:
        return Unavailable(found.detail, public="the server cannot be reached")
    return found
