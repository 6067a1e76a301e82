"""Every error has a row, and comes back from gRPC as itself."""

import grpc
import pytest

from triptych.core import errors
from triptych.wire import status


def every_error():
    found = [errors.TriptychError]
    for kind in found:
        found.extend(kind.__subclasses__())
    return [kind for kind in found if kind.__module__ == errors.__name__]


class Broken(grpc.RpcError):
    def __init__(self, code, details="", trailers=()):
        self._answer = code, details, trailers

    def code(self):
        return self._answer[0]

    def details(self):
        return self._answer[1]

    def trailing_metadata(self):
        return self._answer[2]


def make(kind):
    return kind() if kind is errors.Unauthenticated else kind("why")


@pytest.mark.parametrize("kind", every_error())
def test_error_has_its_own_row_and_survives_the_wire(kind):
    assert kind in status.STATUS
    error = make(kind)
    again = status.from_grpc(Broken(status.grpc_status(error), str(error), status.trailers(error)))
    expected = (
        errors.InvariantBroken if kind in {errors.TriptychError, errors.ConfigError} else kind
    )
    assert type(again) is expected
    assert str(again) == str(error)


@pytest.mark.parametrize(
    ("kind", "code", "http"),
    [("invalid", "INVALID_ARGUMENT", 400), ("too_large", "INVALID_ARGUMENT", 413),
     ("not_found", "NOT_FOUND", 404)],
)  # fmt: skip
def test_request_errors_by_status(kind, code, http):
    error = errors.RequestError("too much", field="n", status=kind)
    assert status.grpc_status(error).name == code
    assert status.http_status(error) == http
    again = status.from_grpc(
        Broken(status.grpc_status(error), error.public, status.trailers(error))
    )
    assert (again.public, again.field) == (error.public, "n")


def test_overloaded_says_when_to_come_back():
    error = errors.Overloaded("full", retry_after_s=2.1)
    assert status.retry_after(error) == "3"
    assert status.retry_after(errors.Unavailable()) is None
    again = status.from_grpc(Broken(status.grpc_status(error), "full", status.trailers(error)))
    assert again.retry_after_s == 3.0


def test_a_new_error_inherits_its_parents_row():
    class Newer(errors.Overloaded):
        pass

    assert status.http_status(Newer()) == 429


def test_errors_of_grpc_itself():
    assert type(status.from_grpc(Broken(grpc.StatusCode.UNAVAILABLE))) is errors.InstanceLost
    assert type(status.from_grpc(Broken(grpc.StatusCode.UNKNOWN))) is errors.InvariantBroken
    assert type(status.from_grpc(Broken(grpc.StatusCode.UNAUTHENTICATED))) is errors.Unauthenticated
