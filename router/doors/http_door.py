"""The HTTP door: OpenAI's chat completions, models, health and metrics.

Every route but health asks for a key where keys are configured. A request gets its ticket before
its body is read, and every way out gives it back. Knows ``answer.Service``; no stage, no block.
"""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from typing import Any

import msgspec
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from router.answer import Delta, Final, Service, Ticket
from router.doors.auth import PUBLIC, ApiKeys
from router.doors.http_reply import ClientGone, LateBody, Reply, read_body, until_gone
from router.doors.intake import Intake
from router.doors.openai_answer import BodyWriter, ChunkWriter
from router.doors.openai_request import Chat, parse_chat, peek_slo
from triptych.core.errors import InvariantBroken, RequestError, TriptychError
from triptych.core.ids import TenantId

log = logging.getLogger(__name__)

PARSE_THREADS = 2
SHORT_BYTES = 1 << 16
"""Bodies up to this are skimmed on the event loop: that takes less than a thread's turn."""
_REQUEST_ID = "x-request-id"
_IGNORED = "x-triptych-ignored"
_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"

Handler = Callable[[Headers, Receive, Reply, TenantId], Awaitable[None]]


def create_app(service: Service, intake: Intake, keys: ApiKeys) -> ASGIApp:
    """The door as an ASGI application."""
    threads = ThreadPoolExecutor(PARSE_THREADS, "http-parse")
    door = _Door(
        _Pages(service), _Completions(service, intake, threads), keys, intake.limits.write_stall_s
    )

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await door(scope, receive, send)
        elif scope["type"] == "lifespan":
            await _live(receive, send)
            threads.shutdown(wait=False, cancel_futures=True)
        else:
            await send({"type": "websocket.close", "code": 1008})

    return app


async def _live(receive: Receive, send: Send) -> None:
    """From the server's start to its end (ASGI lifespan)."""
    while (await receive())["type"] != "lifespan.shutdown":
        await send({"type": "lifespan.startup.complete"})
    await send({"type": "lifespan.shutdown.complete"})


class _Door:
    """Routes, and around each of them: a request id, the key, and the last resort for errors."""

    def __init__(
        self, pages: "_Pages", completions: "_Completions", keys: ApiKeys, stall_s: float
    ) -> None:
        self._keys = keys
        self._stall_s = stall_s
        # Paths without a key say nothing but yes or no.
        self._open: dict[tuple[str, str], Handler] = {
            ("GET", "/live"): pages.live,
            ("GET", "/health"): pages.ready,
            ("GET", "/ready"): pages.ready,
        }
        self._closed: dict[tuple[str, str], Handler] = {
            ("POST", "/v1/chat/completions"): completions.create,
            ("GET", "/v1/models"): pages.models,
            ("GET", "/metrics"): pages.metrics,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One HTTP request (ASGI)."""
        headers = Headers(scope=scope)
        reply = Reply(send, self._stall_s, {_REQUEST_ID: f"http-{secrets.token_hex(12)}"})
        try:
            handler, tenant = self._route(scope["method"], scope["path"], headers)
            await handler(headers, receive, reply, tenant)
        except ClientGone as error:
            log.info("client gone: %s", error)
        except LateBody as error:
            with suppress(ClientGone):
                await reply.late(error, receive)
        except TriptychError as error:
            await _report(reply, error)
        except Exception:
            # The last guard: whatever a bug raises, the client gets a typed error, the log the bug.
            log.exception("a request failed")
            await _report(reply, InvariantBroken())

    def _route(self, method: str, path: str, headers: Headers) -> tuple[Handler, TenantId]:
        method = "GET" if method == "HEAD" else method
        if (handler := self._open.get((method, path))) is not None:
            return handler, PUBLIC
        # Before the path is looked up: without a key nobody learns which paths there are.
        tenant = self._keys.tenant(headers.get("authorization"))
        if (handler := self._closed.get((method, path))) is not None:
            return handler, tenant
        raise RequestError(f"no {method} at this path"[:100], status="not_found")


class _Pages:
    """Answers that need no work."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def live(self, _h: Headers, _r: Receive, reply: Reply, _t: TenantId) -> None:
        """The process runs."""
        await reply.whole(200, b'{"status":"live"}')

    async def ready(self, _h: Headers, _r: Receive, reply: Reply, _t: TenantId) -> None:
        """Every stage has an instance that serves."""
        if self._service.is_ready():
            await reply.whole(200, b'{"status":"ready"}')
        else:
            await reply.whole(503, b'{"status":"not ready"}')

    async def models(self, _h: Headers, _r: Receive, reply: Reply, _t: TenantId) -> None:
        """The one model."""
        name = self._service.model
        model = {"id": name, "object": "model", "created": 0, "owned_by": "triptych"}
        await reply.whole(200, msgspec.json.encode({"object": "list", "data": [model]}))

    async def metrics(self, _h: Headers, _r: Receive, reply: Reply, _t: TenantId) -> None:
        """Prometheus text."""
        await reply.whole(200, self._service.metrics(), _PROMETHEUS)


class _Completions:
    """``POST /v1/chat/completions``"""

    def __init__(self, service: Service, intake: Intake, threads: ThreadPoolExecutor) -> None:
        self._service = service
        self._intake = intake
        self._threads = threads

    async def create(
        self, headers: Headers, receive: Receive, reply: Reply, tenant: TenantId
    ) -> None:
        """Ticket, body, a look at its bounds, answer."""
        ticket = self._service.admit(tenant)
        try:
            chat = await self._read(headers, receive, tenant, ticket)
            reply.headers[_REQUEST_ID] = chat.request.id
            if chat.ignored:
                reply.headers[_IGNORED] = ", ".join(chat.ignored)
            answer = self._stream if chat.is_stream else self._whole
            await _unless_gone(answer(chat, ticket, reply), receive)
        finally:
            ticket.release()

    async def _read(
        self, headers: Headers, receive: Receive, tenant: TenantId, ticket: Ticket
    ) -> Chat:
        limits = self._intake.limits
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise RequestError("is not supported", field="content-encoding")
        length = headers.get("content-length")
        body = await read_body(receive, limits.max_body_bytes, length, limits.write_stall_s)
        loop = asyncio.get_running_loop()
        if self._service.is_choosy:
            # A refusal must cost little: it is said before pictures are decoded and words read.
            is_short = len(body) <= SHORT_BYTES
            slo = (
                peek_slo(body)
                if is_short
                else await loop.run_in_executor(self._threads, peek_slo, body)
            )
            if slo is not None:
                self._service.check(tenant, slo, ticket)
        return await loop.run_in_executor(
            self._threads, parse_chat, body, tenant, self._service.model, self._intake
        )

    async def _stream(self, chat: Chat, ticket: Ticket, reply: Reply) -> None:
        """Server-sent events. What fails before the first one still gets a status of its own."""
        writer = ChunkWriter(chat, self._service.model)
        async with aclosing(self._service.generate(chat.request, ticket)) as parts:
            async for part in parts:
                if not reply.is_started:
                    await reply.begin_events()
                    for chunk in writer.begin():
                        await reply.event(msgspec.json.encode(chunk))
                for chunk in writer.push(part):
                    await reply.event(msgspec.json.encode(chunk))
        if not writer.is_complete:
            raise InvariantBroken("an answer ended without its usage")
        await reply.event(b"[DONE]")
        await reply.end_events()

    async def _whole(self, chat: Chat, ticket: Ticket, reply: Reply) -> None:
        writer = BodyWriter(chat, self._service.model)
        final: Final | None = None
        async with aclosing(self._service.generate(chat.request, ticket)) as parts:
            async for part in parts:
                if isinstance(part, Delta):
                    writer.push(part)
                else:
                    final = part
        if final is None:
            raise InvariantBroken("an answer ended without its usage")
        body = await asyncio.get_running_loop().run_in_executor(
            self._threads, _encode_body, writer, final
        )
        await reply.whole(200, body)


def _encode_body(writer: BodyWriter, final: Final) -> bytes:
    return msgspec.json.encode(writer.body(final))


async def _unless_gone(work: Coroutine[Any, Any, None], receive: Receive) -> None:
    """Do the work, or cancel it when the client leaves."""
    task = asyncio.create_task(work)
    watch = asyncio.create_task(until_gone(receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone("closed the connection")
        await task
    finally:
        task.cancel()
        watch.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _report(reply: Reply, error: TriptychError) -> None:
    with suppress(ClientGone):
        await reply.error(error)
