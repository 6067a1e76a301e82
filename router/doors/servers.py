"""Starts and stops the servers behind the doors on this process's event loop.

Knows sockets and uvicorn; knows no route.
"""

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from triptych.core.errors import ConfigError

BACKLOG = 2048
MAX_HEADER_BYTES = 65_536
KEEP_ALIVE_S = 30


class _Server(uvicorn.Server):
    """Uvicorn without its own signal handlers: the process has its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class HttpServer:
    """One application on one address."""

    def __init__(self, app: ASGIApp, address: str, key: str, stall_s: float = 30.0) -> None:
        """Binds at once; ConfigError names the setting ``key`` when that fails."""
        self._socket = bind(address, key)
        # Connections inherit it: the kernel drops a peer that takes no byte for so long, with all
        # that is buffered for it. Without it, a cut-off client keeps its socket for ever.
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(stall_s * 1000))
        config = uvicorn.Config(
            app,
            # The parser that bounds headers, whatever else is installed.
            http="h11",
            ws="none",
            log_config=None,
            access_log=False,
            proxy_headers=False,  # nobody asks who a client says it is
            backlog=BACKLOG,
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=1,
            server_header=False,
        )
        self._server = _Server(config)
        self._task: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        """Where it listens, with the port that was chosen."""
        host, port = self._socket.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def start(self) -> None:
        """Serve; returns once connections are accepted."""
        self._task = asyncio.create_task(self._server.serve([self._socket]))
        while not self._server.started and not self._task.done():
            await asyncio.sleep(0.01)

    async def close(self) -> None:
        """Stop accepting, close what is open."""
        self._server.should_exit = True
        if self._task is not None:
            await self._task
        self._socket.close()


def bind(address: str, key: str) -> socket.socket:
    """A listening socket on ``host:port``; port 0 takes a free one."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]") or "127.0.0.1"
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        # Connections inherit the protocol, and only of those that say TCP asyncio takes Nagle's
        # delay: with it the second small write of an answer waits 40 ms for a delayed ACK.
        found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, int(port)))
    except (OSError, ValueError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else "expected HOST:PORT"
        raise ConfigError(f"{key}: cannot listen on {address!r}: {reason}") from error
    return found
