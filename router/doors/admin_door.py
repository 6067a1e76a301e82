"""The operators' door: census of every instance, the ledger and its outcomes, who serves what.

On its own port, loopback by default. Knows the cluster and the ledger; serves no client.
"""

import hmac
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from router.advising import Advising
from router.dispatch import Dispatcher
from router.ledger import Ledger
from triptych.core.census import Census
from triptych.core.view import InstanceView

Take = Callable[[], Awaitable[list[Census]]]


def create_app(
    take_census: Take, dispatcher: Dispatcher, ledger: Ledger, advising: Advising, key: str
) -> Starlette:
    """The application; with a ``key`` every route asks for it as a bearer token."""

    def answer(value: object) -> Response:
        return Response(msgspec.json.encode(value), media_type="application/json")

    def is_allowed(request: Request) -> bool:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        return not key or hmac.compare_digest(given.encode(), key.encode())

    async def census(request: Request) -> Response:
        if not is_allowed(request):
            return Response(status_code=401)
        return answer(await take_census())

    async def outcomes(request: Request) -> Response:
        if not is_allowed(request):
            return Response(status_code=401)
        return answer({"open": ledger.num_open, "outcomes": dict(ledger.outcomes)})

    async def entries(request: Request) -> Response:
        """The ledger's file as far as it is written now."""
        if not is_allowed(request):
            return Response(status_code=401)
        if ledger.path is None:
            return Response("router.ledger is not set: nothing is recorded", 404)
        return StreamingResponse(_lines(ledger.path), media_type="application/x-ndjson")

    async def instances(request: Request) -> Response:
        if not is_allowed(request):
            return Response(status_code=401)
        return answer([_row(view) for view in dispatcher.view().instances])

    async def advice(request: Request) -> Response:
        if not is_allowed(request):
            return Response(status_code=401)
        return answer(advising.page())

    return Starlette(
        routes=[
            Route("/census", census),
            Route("/ledger", outcomes),
            Route("/ledger/entries", entries),
            Route("/instances", instances),
            Route("/advice", advice),
        ]
    )


def _row(view: InstanceView) -> dict[str, object]:
    return {
        "id": view.description.id,
        "role": [stage.value for stage in view.description.role],
        "state": view.state.value,
        "pid": view.description.pid,
        "jobs": view.num_jobs,
        "tokens": view.num_tokens,
        "memory_bytes": view.description.memory_bytes,
    }


def _lines(path: Path) -> Iterator[bytes]:
    """Whole lines in pieces; a line that is being written is left out."""
    left = path.stat().st_size
    with path.open("rb") as file:
        while left > 0 and (piece := file.readline(left)).endswith(b"\n"):
            left -= len(piece)
            yield piece
