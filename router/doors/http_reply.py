"""One HTTP answer: bytes to a client that may be slow, or gone.

Every write has a time limit; a client that reads nothing for so long is cut off. Knows ASGI; does
not know what is in the bytes.
"""

import asyncio
from collections.abc import Mapping
from contextlib import suppress

import msgspec
from starlette.types import Message, Receive, Send

from router.doors.openai_answer import error_object
from triptych.core.errors import Cancelled, RequestError, TriptychError
from triptych.wire.status import http_status, retry_after

_JSON = "application/json"
LINGER_S = 1.0
"""So long what still comes of a refused body is read away before the connection is closed: closed
over unread bytes, TCP resets it, and the client may lose the answer."""


class Reply:
    """The answer to one request. ``is_started`` once its status has left."""

    def __init__(self, send: Send, stall_s: float, headers: Mapping[str, str]) -> None:
        self._send = send
        self._stall = _Stall(stall_s)
        self.headers = dict(headers)
        self.is_started = False

    async def whole(self, status: int, body: bytes, media_type: str = _JSON) -> None:
        """Status, headers and body at once."""
        await self._write(*self._whole(status, body, media_type))

    async def begin_events(self) -> None:
        """Begin a stream of server-sent events."""
        start = self._head(
            200,
            {
                "content-type": "text/event-stream; charset=utf-8",
                "cache-control": "no-store",
                "x-accel-buffering": "no",
            },
        )
        await self._write(start)

    async def event(self, data: bytes) -> None:
        """One event; returns when the connection takes more."""
        body = b"data: " + data + b"\n\n"
        await self._write({"type": "http.response.body", "body": body, "more_body": True})
        # A send that need not wait gives the loop no turn, and then nobody hears of a lost client.
        await asyncio.sleep(0)

    async def end_events(self) -> None:
        """The stream is over."""
        await self._write({"type": "http.response.body", "body": b"", "more_body": False})

    async def error(self, error: TriptychError) -> None:
        """The error as a body of its own, or as the last event of a stream that has begun."""
        data = msgspec.json.encode(error_object(error))
        if self.is_started:
            await self.event(data)
            await self.end_events()
            return
        if (seconds := retry_after(error)) is not None:
            self.headers["retry-after"] = seconds
        await self.whole(http_status(error), data)

    async def late(self, error: "LateBody", receive: Receive) -> None:
        """The error of a body that is still coming, and the connection's end."""
        self.headers["connection"] = "close"
        start, body = self._whole(http_status(error), msgspec.json.encode(error_object(error)))
        await self._write(start, {**body, "more_body": True})
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                await until_gone(receive)
        await self.end_events()

    def _whole(self, status: int, body: bytes, media_type: str = _JSON) -> tuple[Message, Message]:
        headers = {"content-type": media_type, "content-length": str(len(body))}
        return self._head(status, headers), {"type": "http.response.body", "body": body}

    def _head(self, status: int, headers: Mapping[str, str]) -> Message:
        self.is_started = True
        raw = [(k.encode(), v.encode("latin-1")) for k, v in {**self.headers, **headers}.items()]
        return {"type": "http.response.start", "status": status, "headers": raw}

    async def _write(self, *messages: Message) -> None:
        self._stall.begin()
        try:
            for message in messages:
                await self._send(message)
        except asyncio.CancelledError:
            if self._stall.was_ours():
                raise ClientGone("reads nothing") from None
            raise
        except OSError:
            raise ClientGone("connection lost") from None
        finally:
            self._stall.end()


class _Stall:
    """Cancels a task that has been writing for ``limit_s``. One timer for many writes, as few of
    them wait: it is set when a write begins and there is none."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._task: asyncio.Task[object] | None = None
        """Who writes."""
        self._begun_s = 0.0
        self._is_over = self._has_timer = False

    def begin(self) -> None:
        """The current task begins to write."""
        loop, self._is_over = asyncio.get_running_loop(), False
        self._task, self._begun_s = asyncio.current_task(), loop.time()
        if not self._has_timer:
            self._has_timer = True
            loop.call_later(self._limit_s, self._look)

    def end(self) -> None:
        """It has written, or given up."""
        self._task = None

    def was_ours(self) -> bool:
        """Whether the current task, which was cancelled, was cancelled by us alone."""
        return self._is_over and self._task is not None and self._task.uncancel() == 0

    def _look(self) -> None:
        loop, self._has_timer = asyncio.get_running_loop(), False
        if self._task is None:
            return
        left_s = self._begun_s + self._limit_s - loop.time()
        if left_s <= 0:
            self._is_over = True
            self._task.cancel()
        else:
            self._has_timer = True
            loop.call_later(left_s, self._look)


class ClientGone(Cancelled):
    """Nobody reads the answer any more; the request is cancelled."""


class LateBody(RequestError):
    """The request's body is not there in time; what still comes of it is of no use."""


async def read_body(receive: Receive, limit: int, length: str | None, stall_s: float) -> bytes:
    """The request's body, at most ``limit`` bytes; a body declared or found longer is refused
    before more of it is read.

    All of it must arrive within ``stall_s``, however many pieces it comes in: its reader holds a
    ticket. Raises LateBody if it does not, ClientGone when the client leaves.
    """
    if length is not None and length.isdecimal() and int(length[:20]) > limit:
        _too_large(limit)
    try:
        async with asyncio.timeout(stall_s):
            return await _pieces(receive, limit)
    except TimeoutError:
        raise LateBody(f"the body did not arrive within {stall_s:g} s") from None


async def _pieces(receive: Receive, limit: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone("left while sending")
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > limit:
            _too_large(limit)
        if not message.get("more_body", False):
            return b"".join(chunks)


async def until_gone(receive: Receive) -> None:
    """Return when the client has closed the connection; what it still sends is dropped."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _too_large(limit: int) -> None:
    raise RequestError(f"the body exceeds the limit of {limit} bytes", status="too_large")
