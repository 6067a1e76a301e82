"""Who is told that the server is ready finds every door of it open."""

import asyncio
import contextlib
import signal
import sys

from tests.flow.served import ROOT, START_S, free_ports
from tests.patience import CALM, PATIENCE_S

ASK = b"GET /ready HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n"


async def test_ready_means_every_door():
    http, grpc, admin = free_ports(3)
    words = ["serve", "--model", "oracle", "--topology", "EPD1", "--http", f"127.0.0.1:{http}"]
    words += ["--grpc", f"127.0.0.1:{grpc}", "--set", f'router.admin="127.0.0.1:{admin}"']
    for setting in (*CALM, "cluster.backend=process"):
        words += ["--set", setting]
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cli", *words, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(START_S):
            while b" 200 " not in await first_line(http):
                await asyncio.sleep(0.001)  # the doors opened within 20 ms of each other
        for port in (grpc, admin):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            await writer.wait_closed()
        async with asyncio.timeout(PATIENCE_S):
            while b"Ctrl-C" not in await server.stdout.readline():
                pass  # a signal before this line would end a start, not a server
    finally:
        server.send_signal(signal.SIGINT)
        async with asyncio.timeout(PATIENCE_S):
            await server.stdout.read()
            code = await server.wait()
    assert code == 0


async def first_line(port: int) -> bytes:
    with contextlib.suppress(OSError):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(ASK)
            return await reader.readline()
        finally:
            writer.close()
    return b""
