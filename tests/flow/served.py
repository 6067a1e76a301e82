"""A real ``triptych serve`` in a process of its own, on free ports, and nothing left behind it."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil

from tests.patience import CALM, PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]
START_S = 4 * PATIENCE_S


class Served:
    """Where a running server listens."""

    def __init__(self, process: asyncio.subprocess.Process, http: str, grpc: str, admin: str):
        self.process = process
        self.http = http
        self.grpc = grpc
        self.admin = admin


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on now."""
    import socket

    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextlib.asynccontextmanager
async def served(topology: str, *settings: str, model: str = "oracle") -> AsyncIterator[Served]:
    """Start the command, wait until it says where it listens, stop it with SIGINT as a person
    would; every process that it started must be gone then."""
    http, grpc, admin = (f"127.0.0.1:{port}" for port in free_ports(3))
    words = ["serve", "--model", model, "--topology", topology, "--http", http, "--grpc", grpc]
    words += ["--set", f'router.admin="{admin}"']
    for setting in (*CALM, *settings):
        words += ["--set", setting]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cli", *words, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    children: list[psutil.Process] = []
    try:
        async with asyncio.timeout(START_S):
            while b"Ctrl-C" not in (line := await process.stdout.readline()):
                assert line, "the server ended while it started"
        children = psutil.Process(process.pid).children(recursive=True)
        yield Served(process, http, grpc, admin)
    finally:
        if process.returncode is None:
            os.kill(process.pid, signal.SIGINT)
        async with asyncio.timeout(PATIENCE_S):
            await process.stdout.read()
            code = await process.wait()
    assert code == 0, f"the server ended with {code}"
    _, alive = psutil.wait_procs(children, timeout=5.0)
    assert not alive, f"left behind: {alive}"
