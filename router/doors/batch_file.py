"""Files of a batch: a request a line in, an answer a line out, as OpenAI's Batch API has them.

    {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {...}}
    {"id": ..., "custom_id": "a", "response": {"status_code": 200, "body": {...}}, "error": null}

An answer is given to the system whole before the next is written, and a batch that was cut off goes
on behind its last whole line. Knows lines and bodies; runs nothing.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

import msgspec
from msgspec import Meta

from router.answer import Delta, Final
from router.doors.auth import PUBLIC
from router.doors.intake import Intake, raise_invalid
from router.doors.openai_answer import BodyWriter, error_object
from router.doors.openai_request import Chat, parse_chat
from triptych.core.errors import ConfigError, RequestError, TriptychError
from triptych.wire.status import http_status

MAX_ID_CHARACTERS = 512


class Line(msgspec.Struct, frozen=True):
    """A line of the input."""

    custom_id: Annotated[str, Meta(min_length=1, max_length=MAX_ID_CHARACTERS)]
    body: msgspec.Raw
    method: Literal["POST"] = "POST"
    url: Literal["/v1/chat/completions"] = "/v1/chat/completions"


class _Named(msgspec.Struct, frozen=True):
    """The name of an answer that is there already."""

    custom_id: str


class Place(msgspec.Struct, frozen=True):
    """Where a request stands in the input."""

    custom_id: str
    offset: int
    num_bytes: int
    number: int
    """Of its line, from 1."""


_LINE = msgspec.json.Decoder(Line)
_NAMED = msgspec.json.Decoder(_Named)


class Requests:
    """The requests of an input file, read where they stand; their bodies are not kept."""

    def __init__(self, path: Path, intake: Intake, model: str) -> None:
        self._file = _open(path, "rb", "input")
        self._intake = intake
        self._model = model

    def places(self) -> Iterator[Place]:
        """Every request in order. Raises RequestError, naming the line, if one is not of the
        format or its ``custom_id`` came before."""
        seen: set[str] = set()
        self._file.seek(0)
        offset = 0
        for number, data in enumerate(self._file, 1):
            if data.strip():
                line = _read(data, number)
                if line.custom_id in seen:
                    raise RequestError("came before", field=f"line {number}: custom_id")
                seen.add(line.custom_id)
                yield Place(line.custom_id, offset, len(data), number)
            offset += len(data)

    def chat(self, place: Place) -> Chat:
        """The request there, its time running from now. Raises RequestError."""
        data = os.pread(self._file.fileno(), place.num_bytes, place.offset)
        return parse_chat(bytes(_read(data, place.number).body), PUBLIC, self._model, self._intake)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Answers:
    """The output file of a batch."""

    def __init__(self, path: Path, model: str) -> None:
        self._file = _open(path, "ab+", "output")
        self._model = model
        self.done = self._recover()
        """``custom_id`` of every answer that is there already."""

    def write(self, place: Place, chat: Chat, deltas: tuple[Delta, ...], final: Final) -> None:
        """A good answer."""
        writer = BodyWriter(chat, self._model)
        for delta in deltas:
            writer.push(delta)
        self._append(place, 200, writer.body(final))

    def write_error(self, place: Place, error: TriptychError) -> None:
        """An error in place of an answer."""
        self._append(place, http_status(error), error_object(error))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _append(self, place: Place, status: int, body: Any) -> None:
        answer = {
            "id": f"batch_req_{place.number}",
            "custom_id": place.custom_id,
            "response": {"status_code": status, "body": body},
            "error": None,
        }
        self._file.write(msgspec.json.encode(answer) + b"\n")
        self._file.flush()
        self.done.add(place.custom_id)

    def _recover(self) -> set[str]:
        """Read what is there and cut off a last line that is not whole."""
        self._file.seek(0)
        done: set[str] = set()
        end = 0
        for data in self._file:
            if not data.endswith(b"\n"):
                break
            try:
                done.add(_NAMED.decode(data).custom_id)
            except msgspec.DecodeError:
                raise ConfigError("output: holds a line that is no answer") from None
            end += len(data)
        self._file.truncate(end)
        return done


def _read(data: bytes, number: int) -> Line:
    try:
        return _LINE.decode(data)
    except msgspec.ValidationError as error:
        try:
            raise_invalid(error)
        except RequestError as wrong:
            raise RequestError(f"line {number}: {wrong}") from None
    except msgspec.DecodeError:
        raise RequestError(f"line {number}: not JSON") from None


def _open(path: Path, mode: str, what: str) -> BinaryIO:
    try:
        return path.open(mode)  # type: ignore[return-value]
    except OSError as error:
        raise ConfigError(f"{what} {path}: {error.strerror}") from error
