"""A Service that answers from a script: it repeats the last user text word by word.

The doors' seam is tested with it over real sockets; the real service stands behind the same seam in
the flow tests. It counts what it was asked, so that tests can tell what reached it.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

from router.answer import Delta, Final, Ticket, Timeline, TokenInfo, Usage
from router.doors.auth import ApiKeys
from router.doors.grpc_door import GrpcDoor
from router.doors.http_door import create_app
from router.doors.intake import Intake
from router.doors.servers import HttpServer
from tests.patience import PATIENCE_S
from triptych.core.clock import MonotonicClock
from triptych.core.config import Config
from triptych.core.errors import Cancelled, Overloaded, TriptychError
from triptych.core.request import Request, TextPart
from triptych.inputs.model_card import load_card

TIMELINE = Timeline(0.001, 0.002, 0.003, 0.004, 0.005, 0.015, 0.0005, 0.02, 1, ("p@0", "d@0"))


class CountedTicket:
    def __init__(self, service):
        self._service = service
        service.num_tickets += 1

    def release(self):
        if self._service is not None:
            self._service.num_tickets -= 1
            self._service = None


class ScriptedService:
    """``fail_at``: raise ``error`` instead of that token. ``pause_s``: between tokens."""

    model = "scripted"

    def __init__(self, *, places=64, pause_s=0.0, fail_at=None, error=None, repeat=1):
        self.places = places
        self.pause_s = pause_s
        self.fail_at = fail_at
        self.error: TriptychError | Exception | None = error
        self.repeat = repeat
        self.num_tickets = 0
        self.num_produced = 0
        self.ready = True
        self.requests: list[Request] = []
        self.ended: list[str] = []
        self.running: dict[str, asyncio.Task] = {}

    def admit(self, tenant) -> Ticket:
        if self.num_tickets >= self.places:
            raise Overloaded("full: /tmp/secret 0xdeadbeef", retry_after_s=2.3)
        return CountedTicket(self)

    is_choosy = False

    def check(self, tenant, slo, ticket) -> None:
        """Nobody is turned away by bounds."""

    async def generate(
        self, request: Request, ticket: Ticket
    ) -> AsyncGenerator[Delta | Final, None]:
        self.requests.append(request)
        self.running[request.id] = asyncio.current_task()
        how = "cancelled"
        try:
            count = 0
            for choice in range(request.num_choices):
                async for delta in self._choice(request, choice):
                    count += len(delta.tokens)
                    yield delta
            how = "completed"
            yield Final(Usage(11, count, 4 * len(request.pictures), 3), TIMELINE)
        except TriptychError:
            how = "failed"
            raise
        except asyncio.CancelledError:
            if getattr(self.running[request.id], "asked", False):
                raise Cancelled("asked") from None
            raise
        finally:
            del self.running[request.id]
            self.ended.append(how)
            ticket.release()

    async def _choice(self, request, choice):
        words = list(script(request)) * self.repeat
        cut = words[: request.stop.max_tokens]
        for index, word in enumerate(cut):
            if self.pause_s:
                await asyncio.sleep(self.pause_s)
            if index == self.fail_at:
                raise self.error
            self.num_produced += 1
            yield Delta(choice, word, (info(word, request.sampling.logprobs),))
        yield Delta(choice, "", (), "stop" if len(cut) == len(words) else "length")

    async def cancel(self, request, tenant) -> bool:
        task = self.running.get(request)
        if task is None:
            return False
        task.asked = True
        task.cancel()
        return True

    def is_ready(self) -> bool:
        return self.ready

    def metrics(self) -> bytes:
        return b"triptych_up 1\n"


def script(request: Request):
    text = "".join(p.text for p in request.messages[-1].parts if isinstance(p, TextPart))
    return text.split(" ") if len(text) < 10_000 else [text[:9]]


def token_id(word: str) -> int:
    return sum(word.encode()) % 1000


def info(word: str, logprobs: int) -> TokenInfo:
    top = tuple(TokenInfo(i, f"alt{i}", b"alt%d" % i, -1.5 - i) for i in range(max(0, logprobs)))
    own = -0.5 if logprobs >= 0 else None
    return TokenInfo(token_id(word), word, word.encode(), own, top)


def make_intake(**limits) -> Intake:
    import msgspec

    config = Config()
    config = msgspec.structs.replace(
        config, limits=msgspec.structs.replace(config.limits, **limits)
    )
    return Intake(config, load_card("oracle"), MonotonicClock())


@asynccontextmanager
async def http_door(service, keys=None, **limits):
    """The door on a real socket; yields its base URL."""
    app = create_app(service, make_intake(**limits), ApiKeys(keys or {}))
    stall_s = limits.get("write_stall_s", 30.0)
    server = HttpServer(app, "127.0.0.1:0", "router.http", stall_s)
    await server.start()
    try:
        yield f"http://{server.address}"
    finally:
        await server.close()


@asynccontextmanager
async def grpc_door(service, keys=None, **limits):
    """The door on a real socket; yields its address."""
    door = GrpcDoor(service, make_intake(**limits), ApiKeys(keys or {}), "127.0.0.1:0")
    await door.start()
    try:
        yield door.address
    finally:
        await door.close()


async def until(condition, timeout_s=PATIENCE_S):
    """Wait for a condition that something else brings about."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def bare_connection(url, **more):
    """A TCP connection to a door; closed whatever happens."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, port, **more)
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


def post_bytes(body: bytes, length: object = None) -> bytes:
    """A POST to the completions as bytes."""
    size = len(body) if length is None else length
    return b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %s\r\n\r\n%s" % (
        str(size).encode(),
        body,
    )
