"""The one tree of errors.

    TriptychError
    |-- ConfigError          the configuration is wrong: nothing was started
    |-- RequestError         the request is wrong: nothing was done
    |   `-- Unauthenticated  no key, or a wrong one
    |-- Overloaded           refused before work, with a time to come back
    |-- Unavailable          no instance can take the work now
    |-- DeadlineExceeded     the request's time is over
    |-- Cancelled            somebody asked for it
    |-- TransferError        bytes did not arrive as promised
    |-- InstanceLost         the instance that held the work is gone or was fenced off
    |-- Preempted            an instance gave the work back for want of blocks
    |-- StaleCache           what a directory said to be cached is not there any more
    `-- InvariantBroken      a bug: the work is stopped, never answered wrongly

Knows what went wrong and what a client may read of it. Statuses of gRPC and HTTP are in
``wire.status``. ``detail`` is for logs; ``public`` never shows a path, an address or a traceback.
"""

import re


class TriptychError(Exception):
    """Base of everything that this project raises on purpose."""

    code: str = "internal"
    public: str = "internal error"
    is_retryable: bool = False
    blame: str = ""
    """The instance at fault, where one is known: a retry avoids it."""

    def __init__(self, detail: str = "", *, public: str | None = None) -> None:
        super().__init__(detail or self.public)
        self.detail = detail
        if public is not None:
            self.public = public


class ConfigError(TriptychError):
    """The configuration is wrong; names the key and the limit."""

    code = "config"
    public = "the server is not configured for this"


class RequestError(TriptychError):
    """The request is wrong; ``field`` is the path of the offending value.

    ``code`` and text say all of it: ``from_code`` makes the same error of them again.
    """

    code = "invalid_request"

    def __init__(self, message: str, *, field: str = "", status: str = "invalid") -> None:
        text = f"{field}: {message}" if field else message
        super().__init__(text, public=text)
        self.field = field
        self.status = status
        """``invalid``, ``too_large`` or ``not_found``: selects the client's status code."""
        if status != "invalid":
            self.code = status


class Unauthenticated(RequestError):
    """No key, or one that is not known."""

    code = "unauthenticated"

    def __init__(self) -> None:
        super().__init__("a valid API key is required")


class Overloaded(TriptychError):
    """Refused before any work was done; ``retry_after_s`` says when to come back."""

    code = "overloaded"
    public = "the server is at its limit of waiting requests"

    def __init__(self, detail: str = "", *, retry_after_s: float = 1.0) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class Unavailable(TriptychError):
    """No instance of a needed stage can take work now."""

    code = "unavailable"
    public = "no instance is available for this request"
    is_retryable = True


class DeadlineExceeded(TriptychError):
    """The request's deadline has passed."""

    code = "deadline_exceeded"
    public = "the deadline of the request has passed"


class Cancelled(TriptychError):
    """The client, or somebody for it, cancelled the request."""

    code = "cancelled"
    public = "the request was cancelled"


class TransferError(TriptychError):
    """Promised bytes were late, short, corrupt or of another layout."""

    code = "data_loss"
    public = "intermediate data was lost"
    is_retryable = True


class InstanceLost(TriptychError):
    """The instance that held the work died, hung or was fenced off."""

    code = "instance_lost"
    public = "an instance was lost while it worked on the request"
    is_retryable = True


class Preempted(TriptychError):
    """A decode instance ran out of blocks and gave the sequence back to be resumed elsewhere."""

    code = "preempted"
    public = "the request was preempted"
    is_retryable = True


class StaleCache(TriptychError):
    """Something was not sent because a directory said that it is cached, and it is not: what a
    directory says is a hint. The attempt is repeated at once without one."""

    code = "stale"
    public = "cached data was not where it was expected"
    is_retryable = True


class InvariantBroken(TriptychError):
    """Something that cannot be, was. The request fails; it is never answered wrongly."""

    code = "internal"


BY_CODE: dict[str, type[TriptychError]] = {
    "unavailable": Unavailable,
    "deadline_exceeded": DeadlineExceeded,
    "cancelled": Cancelled,
    "data_loss": TransferError,
    "instance_lost": InstanceLost,
    "preempted": Preempted,
    "stale": StaleCache,
    "internal": InvariantBroken,
    "overloaded": Overloaded,
}
"""Codes that cross a wire inside a ``Failed`` event, and the error each one becomes again."""


_STATUSES = {RequestError.code: "invalid", "too_large": "too_large", "not_found": "not_found"}
"""Codes of a RequestError, and its ``status``."""
_FIELD = re.compile(r"(?P<field>[A-Za-z_][\w.\[\]-]*): (?P<message>.+)", re.DOTALL)
"""A RequestError's text, where it names a field."""


def from_code(code: str, detail: str) -> TriptychError:
    """The error that a peer meant by ``code`` and the text of its error; of a RequestError the
    message, the field and the status are the same again."""
    if (status := _STATUSES.get(code)) is None:
        return BY_CODE.get(code, InvariantBroken)(detail)
    if (named := _FIELD.fullmatch(detail)) is None:
        return RequestError(detail, status=status)
    return RequestError(named["message"], field=named["field"], status=status)
