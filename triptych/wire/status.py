"""THE table: error -> gRPC status -> HTTP status, and back from a gRPC error.

Looked up along the class's MRO, so a new error inherits its parent's row. Knows statuses and
trailers; does not know which texts a door shows (that is ``TriptychError.public``).
"""

import math
from typing import NamedTuple

import grpc

from triptych.core import errors
from triptych.core.errors import TriptychError

CODE_TRAILER = "triptych-code"
"""Trailer with the error's ``code``, because several errors share one gRPC status."""
FIELD_TRAILER = "triptych-field"
"""Trailer with the path of the offending value of a RequestError."""
RETRY_TRAILER = "retry-after"
"""Trailer (and HTTP header) with whole seconds to wait, at least 1."""


class Status(NamedTuple):
    """What the two doors answer for one kind of error."""

    grpc: grpc.StatusCode
    http: int


STATUS: dict[type[TriptychError], Status] = {
    TriptychError: Status(grpc.StatusCode.INTERNAL, 500),
    errors.ConfigError: Status(grpc.StatusCode.FAILED_PRECONDITION, 500),
    errors.RequestError: Status(grpc.StatusCode.INVALID_ARGUMENT, 400),
    errors.Unauthenticated: Status(grpc.StatusCode.UNAUTHENTICATED, 401),
    errors.Overloaded: Status(grpc.StatusCode.RESOURCE_EXHAUSTED, 429),
    errors.Unavailable: Status(grpc.StatusCode.UNAVAILABLE, 503),
    errors.DeadlineExceeded: Status(grpc.StatusCode.DEADLINE_EXCEEDED, 504),
    errors.Cancelled: Status(grpc.StatusCode.CANCELLED, 499),
    errors.TransferError: Status(grpc.StatusCode.DATA_LOSS, 502),
    errors.InstanceLost: Status(grpc.StatusCode.UNAVAILABLE, 503),
    errors.Preempted: Status(grpc.StatusCode.UNAVAILABLE, 503),
    errors.StaleCache: Status(grpc.StatusCode.UNAVAILABLE, 503),
    errors.InvariantBroken: Status(grpc.StatusCode.INTERNAL, 500),
}

REQUEST_STATUS: dict[str, Status] = {
    "invalid": STATUS[errors.RequestError],
    "too_large": Status(grpc.StatusCode.INVALID_ARGUMENT, 413),
    "not_found": Status(grpc.StatusCode.NOT_FOUND, 404),
}
"""Rows of a RequestError by its ``status``."""

_BY_GRPC: dict[grpc.StatusCode, type[TriptychError]] = {
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.Overloaded,
    grpc.StatusCode.UNAVAILABLE: errors.InstanceLost,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    grpc.StatusCode.CANCELLED: errors.Cancelled,
    grpc.StatusCode.DATA_LOSS: errors.TransferError,
    grpc.StatusCode.FAILED_PRECONDITION: errors.ConfigError,
}
"""What a status without our trailer means: it came from gRPC itself, so a lost connection, never a
refusal of ours."""


def status_of(error: TriptychError) -> Status:
    """The row of ``error``."""
    if isinstance(error, errors.RequestError) and not isinstance(error, errors.Unauthenticated):
        return REQUEST_STATUS[error.status]
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def grpc_status(error: TriptychError) -> grpc.StatusCode:
    """The gRPC status of ``error``."""
    return status_of(error).grpc


def http_status(error: TriptychError) -> int:
    """The HTTP status of ``error``."""
    return status_of(error).http


def retry_after(error: TriptychError) -> str | None:
    """Whole seconds for a Retry-After header, or None when there is no sense in one."""
    if isinstance(error, errors.Overloaded):
        return str(max(1, math.ceil(error.retry_after_s)))
    return None


def trailers(error: TriptychError) -> tuple[tuple[str, str], ...]:
    """Trailing metadata from which ``from_grpc`` makes the error again."""
    rows = [(CODE_TRAILER, error.code)]
    if isinstance(error, errors.RequestError) and error.field.isascii() and error.field:
        rows.append((FIELD_TRAILER, error.field))
    if (seconds := retry_after(error)) is not None:
        rows.append((RETRY_TRAILER, seconds))
    return tuple(rows)


def from_grpc(error: grpc.RpcError) -> TriptychError:
    """The error that a server of ours meant, or what a broken connection amounts to.

    ``error`` is a ``grpc.aio.AioRpcError`` or the synchronous client's, which is a call as well.
    """
    status: grpc.StatusCode = error.code()
    detail: str = error.details() or status.name
    metadata: dict[str, str] = dict(error.trailing_metadata() or ())
    code = metadata.get(CODE_TRAILER)
    if code == errors.Unauthenticated.code or (
        code is None and status is grpc.StatusCode.UNAUTHENTICATED
    ):
        return errors.Unauthenticated()
    if code == errors.RequestError.code or (code is None and status in _REQUEST):
        field = metadata.get(FIELD_TRAILER, "")
        message = detail.removeprefix(f"{field}: ") if field else detail
        return errors.RequestError(message, field=field, status=_REQUEST.get(status, "invalid"))
    if code == errors.Overloaded.code:
        return errors.Overloaded(detail, retry_after_s=float(metadata.get(RETRY_TRAILER, "1")))
    if code is not None:
        return errors.from_code(code, detail)
    return _BY_GRPC.get(status, errors.InvariantBroken)(detail)


_REQUEST = {
    grpc.StatusCode.INVALID_ARGUMENT: "invalid",
    grpc.StatusCode.NOT_FOUND: "not_found",
}
