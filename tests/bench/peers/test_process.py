"""Processes of others: ready when they answer, told when they fail, and nothing of them stays."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.client import Target
from bench.peers.process import Process, is_alive, segments
from bench.systems import SystemFailed, free_ports

SERVES = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from multiprocessing import resource_tracker, shared_memory
from pathlib import Path
held = shared_memory.SharedMemory(create=True, size=4096)
resource_tracker.unregister(held._name, "shared_memory")
Path(sys.argv[2]).write_text(held.name)
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
    def log_message(self, *words):
        pass
HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


async def test_what_it_leaves_in_shared_memory_goes_with_it(tmp_path, no_leak):
    (port,) = free_ports(1)
    name = tmp_path / "name"
    process = Process("S", (sys.executable, "-c", SERVES, str(port), str(name)), {})
    try:
        await process.start()
        await process.ready(Target("127.0.0.1", port, ""), "/health")
        segment = Path("/dev/shm", name.read_text())
        assert segment.exists()
    finally:
        await process.stop()
    assert not segment.exists()
    await process.stop()


async def test_one_that_ends_early_is_told_with_its_last_words():
    process = Process("S", (sys.executable, "-c", "import sys; sys.exit('no memory')"), {})
    await process.start()
    with pytest.raises(SystemFailed, match=r"S ended while starting:\nno memory"):
        await process.ready(Target("127.0.0.1", 9, ""), "/health")
    await process.stop()


async def test_no_such_program_is_said():
    process = Process("S", ("no/such/program",), {})
    with pytest.raises(SystemFailed, match="no/such/program"):
        await process.start()
    await process.stop()


async def test_one_that_never_answers_is_given_up():
    process = Process("S", (sys.executable, "-c", "import time; time.sleep(600)"), {})
    await process.start()
    with pytest.raises(SystemFailed, match="not ready in time"):
        await process.ready(Target("127.0.0.1", 9, ""), "/health", timeout_s=0.1)
    await process.stop()


def test_nobody_holds_nothing():
    assert segments(2**22 + 1) == set()


async def test_one_that_waits_to_be_buried_does_not_live():
    process = subprocess.Popen((sys.executable, "-c", ""), stdin=subprocess.DEVNULL)
    while is_alive(process.pid):
        await asyncio.sleep(0.01)
    assert Path(f"/proc/{process.pid}").exists()
    process.wait()
    assert not is_alive(process.pid)
    assert is_alive(os.getpid())
