"""An open-loop client of the OpenAI-compatible HTTP door: sends at given times, notes token times.

Plain asyncio streams, a connection a request unless they are kept: between the socket and the clock
stands as little as possible. Knows the wire format it needs and nothing of the server.
"""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import msgspec

from bench.workloads import Ask

_LINE_LIMIT = 1 << 22
_EVENT = msgspec.json.Decoder(dict[str, Any])


class Outcome(msgspec.Struct, frozen=True):
    """What became of one request. Times in seconds since the start of the run."""

    arrival_s: float
    """When it should have been sent; a late client cannot make a server look fast."""
    token_times_s: tuple[float, ...]
    end_s: float
    status: str
    """``ok``, ``refused`` (429 or 503), ``failed`` or ``timeout``."""
    detail: str = ""


class Target(msgspec.Struct, frozen=True):
    """A server to measure."""

    host: str
    port: int
    model: str
    timeout_s: float = 120.0
    """Of each request, from its arrival."""
    api_key: str = ""
    is_tls: bool = False
    prefix: str = ""
    """Of every path, e.g. ``/api`` for a server behind a gateway; without ``/v1``."""

    @staticmethod
    def of(url: str, model: str = "", api_key: str = "", timeout_s: float = 120.0) -> "Target":
        """The server at an ``http`` or ``https`` URL, with or without ``/v1`` at its end. Raises
        ValueError for another scheme or without a host."""
        parts = urlsplit(url if "//" in url else f"http://{url}")
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError(f"url: {url!r} is no http:// or https:// address")
        is_tls = parts.scheme == "https"
        prefix = parts.path.rstrip("/").removesuffix("/v1")
        port = parts.port or (443 if is_tls else 80)
        return Target(parts.hostname, port, model, timeout_s, api_key, is_tls, prefix)

    @property
    def url(self) -> str:
        """Where its API begins."""
        scheme = "https" if self.is_tls else "http"
        return f"{scheme}://{self.host}:{self.port}{self.prefix}/v1"

    def serving(self, model: str) -> "Target":
        """The same server, asked for ``model``."""
        return msgspec.structs.replace(self, model=model)


async def open_loop(
    target: Target,
    asks: Sequence[Ask],
    arrivals_s: Sequence[float],
    on_end: Callable[[Outcome], None] = lambda _: None,
) -> tuple[Outcome, ...]:
    """Send every ask at its time, whatever became of the others; outcomes in order of arrival."""
    bodies = [_body(target.model, ask) for ask in asks]
    began_s = asyncio.get_running_loop().time() + 0.05

    async def one(body: bytes, arrival_s: float) -> Outcome:
        outcome = await _one(target, body, began_s, arrival_s)
        on_end(outcome)
        return outcome

    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(one(body, arrival_s))
            for body, arrival_s in zip(bodies, arrivals_s, strict=True)
        ]
    return tuple(task.result() for task in tasks)


async def _one(target: Target, body: bytes, began_s: float, arrival_s: float) -> Outcome:
    loop = asyncio.get_running_loop()
    await asyncio.sleep(began_s + arrival_s - loop.time())
    times: list[float] = []
    status, detail = "ok", ""
    try:
        async with asyncio.timeout_at(began_s + arrival_s + target.timeout_s):
            async for num_tokens in _stream(target, body):
                times.extend([loop.time() - began_s] * num_tokens)
    except TimeoutError:
        status, detail = "timeout", f"after {target.timeout_s:g} s"
    except Refused as error:
        status, detail = "refused", str(error)
    except (OSError, EOFError, ValueError) as error:
        status, detail = "failed", f"{type(error).__name__}: {error}"
    if status == "ok" and not times:
        status, detail = "failed", "an answer without tokens"
    return Outcome(arrival_s, tuple(times), loop.time() - began_s, status, detail)


class Refused(ValueError):
    """The server said that it has no room: 429 or 503, or what another transport has for them."""


class Kept:
    """Connections to one server that wait for their next request, as clients' libraries keep them.
    As many are open as there ever were requests at once."""

    def __init__(self) -> None:
        self._idle: list[_Connection] = []

    def take(self) -> "_Connection | None":
        """The one that was used last, if any waits that the server has not closed."""
        while self._idle:
            reader, writer = self._idle.pop()
            if not (reader.at_eof() or writer.is_closing()):
                return reader, writer
            writer.close()
        return None

    def give(self, connection: "_Connection") -> None:
        """Its answer was read to the end."""
        self._idle.append(connection)

    async def close(self) -> None:
        """Close those that wait."""
        while self._idle:
            await _close(self._idle.pop()[1])


async def get(target: Target, path: str) -> tuple[int, bytes]:
    """Status and body of a GET."""
    reader, writer = await _open(target)
    try:
        writer.write(_head(target, "GET", path))
        status, headers = await _read_head(reader)
        return status, b"".join([piece async for piece in _read_body(reader, headers)])
    finally:
        await _close(writer)


async def _stream(target: Target, body: bytes) -> AsyncIterator[int]:
    """Number of tokens in each event of the answer, as the events come in."""
    async for event in events(target, body):
        if num_tokens := count(event):
            yield num_tokens


async def events(
    target: Target, body: bytes, kept: Kept | None = None
) -> AsyncIterator[dict[str, Any]]:
    """Events of a streamed chat completion as they come in, the end mark left out. Raises Refused,
    ValueError (what the server said instead), EOFError or OSError. ``kept``: where connections
    come from and go to."""
    connection, status, headers = await _post(target, body, kept)
    can_keep = kept is not None and _is_kept(headers)
    is_whole = False
    try:
        pieces = _read_body(connection[0], headers)
        if status != 200:
            text = b"".join([piece async for piece in pieces])[:300].decode(errors="replace")
            is_whole = True
            raise (Refused if status in {429, 503} else ValueError)(f"HTTP {status}: {text}")
        async for data in _data(pieces):
            if data == b"[DONE]":
                if can_keep:
                    async for _ in pieces:
                        pass
                is_whole = True
                return
            yield _decoded(data)
        raise EOFError("the stream ended without [DONE]")
    finally:
        if is_whole and can_keep and kept is not None:
            kept.give(connection)
        else:
            await _close(connection[1])


def _decoded(data: bytes) -> dict[str, Any]:
    try:
        return _EVENT.decode(data)
    except msgspec.DecodeError as error:
        raise ValueError(f"not an event: {error}") from None


async def _data(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """What stands in the events of a body."""
    pending = b""
    async for piece in pieces:
        *lines, pending = (pending + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()


_Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _open(target: Target) -> _Connection:
    return await asyncio.open_connection(
        target.host, target.port, limit=_LINE_LIMIT, ssl=target.is_tls or None
    )


async def _post(
    target: Target, body: bytes, kept: Kept | None
) -> tuple[_Connection, int, dict[str, str]]:
    """Send a request, once: the connection, and status and headers of the answer that comes on it.
    A server that closes it behind the request has failed, also on a connection that was kept."""
    head = _head(target, "POST", "/v1/chat/completions", len(body), is_last=kept is None)
    old = None if kept is None else kept.take()
    reader, writer = old or await _open(target)
    try:
        writer.write(head + body)
        await writer.drain()
        return (reader, writer), *await _read_head(reader)
    except BaseException:
        await _close(writer)
        raise


def count(event: dict[str, Any]) -> int:
    """Tokens of one event: as many as its ids, or one for text from a server that sends no ids.
    Raises ValueError if the event tells of an error."""
    if "error" in event:
        raise ValueError(f"error event: {event['error']}")
    choices = event.get("choices")
    if not isinstance(choices, list) or not choices:
        return 0
    ids = choices[0].get("token_ids")
    if isinstance(ids, list):
        return len(ids)
    delta = choices[0].get("delta") or {}
    return int(bool(delta.get("content") or delta.get("reasoning_content")))


def picture_part(png: bytes) -> dict[str, Any]:
    """A picture as a message carries it."""
    url = "data:image/png;base64," + base64.b64encode(png).decode()
    return {"type": "image_url", "image_url": {"url": url}}


def _body(model: str, ask: Ask) -> bytes:
    content = [*map(picture_part, ask.pictures), {"type": "text", "text": ask.question}]
    return json.dumps(
        {
            "model": model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": ask.max_tokens,
            "temperature": 0,
            "stream": True,
            "ignore_eos": True,
            "return_token_ids": True,
        }
    ).encode()


def _head(
    target: Target, method: str, path: str, length: int = 0, *, is_last: bool = True
) -> bytes:
    """``is_last``: the connection is of no use behind the answer."""
    then = "close" if is_last else "keep-alive"
    key = f"Authorization: Bearer {target.api_key}\r\n" if target.api_key else ""
    return (
        f"{method} {target.prefix}{path} HTTP/1.1\r\nHost: {target.host}:{target.port}\r\n{key}"
        f"Content-Type: application/json\r\nContent-Length: {length}\r\nConnection: {then}\r\n\r\n"
    ).encode()


async def _read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    words = (await reader.readline()).split()
    if len(words) < 2:
        raise EOFError("the server closed the connection without an answer")
    headers: dict[str, str] = {}
    while line := (await reader.readline()).strip():
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.lower()] = value.strip().lower()
    return int(words[1]), headers


def _is_kept(headers: dict[str, str]) -> bool:
    """Whether the end of the body is told otherwise than by the end of the connection."""
    has_end = "content-length" in headers or headers.get("transfer-encoding") == "chunked"
    return has_end and headers.get("connection") != "close"


async def _read_body(reader: asyncio.StreamReader, headers: dict[str, str]) -> AsyncIterator[bytes]:
    if "content-length" in headers:
        yield await reader.readexactly(int(headers["content-length"]))
        return
    if headers.get("transfer-encoding") != "chunked":
        while piece := await reader.read(1 << 16):
            yield piece
        return
    while size := int((await reader.readline()).partition(b";")[0] or b"0", 16):
        yield (await reader.readexactly(size + 2))[:-2]
    while (await reader.readline()).strip():
        pass  # what stands behind the last chunk


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
