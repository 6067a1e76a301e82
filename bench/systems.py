"""What is measured: a Triptych server of some topology, or plain Transformers.

Each is started as processes of its own, asked, and stopped again; nothing of it runs in the
measuring process. Knows command lines, not implementations.
"""

import asyncio
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Protocol

import msgspec

from bench.client import Outcome, Target, get, open_loop
from bench.workloads import Ask

_START_TIMEOUT_S = 180.0
_STOP_TIMEOUT_S = 30.0
_TIDY_TIMEOUT_S = 5.0


class Run(msgspec.Struct, frozen=True):
    """Requests and when they arrive."""

    asks: tuple[Ask, ...]
    arrivals_s: tuple[float, ...]


class SystemFailed(RuntimeError):
    """A system did not start or died; carries the end of what it said."""


class System(Protocol):
    """Something that answers."""

    name: str

    async def start(self) -> None:
        """Return when it answers."""
        ...

    async def run(self, run: Run, on_end: Callable[[Outcome], None]) -> tuple[Outcome, ...]:
        """Answer a run; outcomes in order of arrival."""
        ...

    async def stop(self) -> None:
        """End every process. Safe at any time."""
        ...


class TriptychServer:
    """``triptych serve`` on free ports."""

    def __init__(
        self, model: str, topology: str, settings: Sequence[str], timeout_s: float
    ) -> None:
        self.name = topology
        self._model, self._settings, self._timeout_s = model, settings, timeout_s
        self._process: asyncio.subprocess.Process | None = None
        self._said: IO[bytes] | None = None
        self._target: Target | None = None
        self.admin_port = 0
        """Of the operators' door, once it is started."""

    async def start(self) -> None:
        """Start it and wait for ``/ready``."""
        http, grpc, self.admin_port = free_ports(3)
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed in stop
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "cli", "serve", "--model", self._model),
            *("--topology", self.name),
            *("--http", f"127.0.0.1:{http}", "--grpc", f"127.0.0.1:{grpc}"),
            *("--set", f"router.admin=127.0.0.1:{self.admin_port}"),
            *(word for setting in self._settings for word in ("--set", setting)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=self._said,
            stderr=self._said,
            start_new_session=True,
        )
        target = Target("127.0.0.1", http, "", self._timeout_s)
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                while not await _is_ready(target):
                    if self._process.returncode is not None:
                        raise SystemFailed(f"{self.name} ended while starting:\n{self._tail()}")
                    await asyncio.sleep(0.2)
        except TimeoutError as error:
            raise SystemFailed(f"{self.name} was not ready in time:\n{self._tail()}") from error
        _, models = await get(target, "/v1/models")
        name = msgspec.json.decode(models)["data"][0]["id"]
        self._target = msgspec.structs.replace(target, model=name)

    @property
    def target(self) -> Target:
        """Where it answers; raises SystemFailed unless it is started."""
        if self._target is None:
            raise SystemFailed(f"{self.name} was not started")
        return self._target

    async def run(self, run: Run, on_end: Callable[[Outcome], None]) -> tuple[Outcome, ...]:
        """Ask over HTTP, open loop."""
        return await open_loop(self.target, run.asks, run.arrivals_s, on_end)

    async def stop(self) -> None:
        """Ctrl-C, then whatever it takes."""
        if self._process is not None:
            await end(self._process)
        if self._said is not None:
            self._said.close()
        self._process = self._said = self._target = None

    def _tail(self) -> str:
        if self._said is None:
            return ""
        self._said.seek(0)
        return self._said.read()[-3000:].decode(errors="replace")


class PlainTransformers:
    """``bench.peer_transformers`` behind a pipe."""

    name = "Transformers"

    def __init__(self, model: str, device: str) -> None:
        self._words = (model, device)
        self._process: asyncio.subprocess.Process | None = None
        self.settings: dict[str, object] = {}

    async def start(self) -> None:
        """Start it and wait until the model is loaded and its thread count chosen."""
        environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "bench.peer_transformers", *self._words),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=environment,
            limit=1 << 24,
            start_new_session=True,
        )
        async with asyncio.timeout(_START_TIMEOUT_S):
            self.settings = msgspec.json.decode(await self._line())

    async def run(self, run: Run, on_end: Callable[[Outcome], None]) -> tuple[Outcome, ...]:
        """Hand the run over and collect the outcomes."""
        if self._process is None or self._process.stdin is None:
            raise SystemFailed("Transformers was not started")
        self._process.stdin.write(msgspec.json.encode(run) + b"\n")
        await self._process.stdin.drain()
        outcomes = []
        for _ in run.asks:
            outcomes.append(msgspec.json.decode(await self._line(), type=Outcome))
            on_end(outcomes[-1])
        return tuple(outcomes)

    async def stop(self) -> None:
        """End of its stdin ends it."""
        if self._process is not None:
            if self._process.stdin is not None:
                self._process.stdin.close()
            await end(self._process)
        self._process = None

    async def _line(self) -> bytes:
        if self._process is None or self._process.stdout is None:
            raise SystemFailed("Transformers was not started")
        line = await self._process.stdout.readline()
        if not line:
            raise SystemFailed("Transformers ended early; run python -m bench.peer_transformers")
        return line


async def end(process: asyncio.subprocess.Process) -> None:
    """Ctrl-C, patience, then the end of all that is left of its group, which it must lead. Who
    tidies up behind others, as Python's tracker of shared memory does, has a moment for that."""
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGINT)
    try:
        async with asyncio.timeout(_STOP_TIMEOUT_S):
            await process.wait()
        async with asyncio.timeout(_TIDY_TIMEOUT_S):
            while _is_peopled(process.pid):
                await asyncio.sleep(0.05)
    except TimeoutError:
        pass  # the next line does not ask
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


def _is_peopled(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


async def _is_ready(target: Target) -> bool:
    try:
        status, _ = await get(target, "/ready")
    except (OSError, EOFError):
        return False
    return status == 200


def free_ports(count: int) -> list[int]:
    """Ports that nobody has at this moment."""
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in servers]
    for server in servers:
        server.close()
    return ports


def has_cuda() -> bool:
    """Whether a CUDA driver is loaded on this machine."""
    return Path("/proc/driver/nvidia/version").exists()
