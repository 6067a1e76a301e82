"""Instances in plain child processes: ``python -m cluster``, its specification on stdin, one line
of JSON with its address on stdout.

A child dies with its parent (see ``cluster.__main__``). Knows processes and signals, no pool.
"""

import asyncio
import contextlib
import logging
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable

import msgspec

from cluster.host import LAST_WORDS_S, Hosted, InstanceSpec, child_environment
from cluster.remote import Served, connect
from triptych.core.errors import Unavailable
from triptych.core.ids import InstanceId
from triptych.wire.client import RemoteInstance

log = logging.getLogger(__name__)

_KILL_S = 10.0


class HostedProcess:
    """One child process and the connection to its instance."""

    def __init__(self, process: Process, instance: RemoteInstance, name: InstanceId) -> None:
        self.instance = instance
        self.pid = process.pid
        self._process = process
        self._name = name

    async def wait(self) -> str:
        """Return when the process ended."""
        code = await self._process.wait()
        return f"its process ended with {code}"

    async def stop(self, drain_s: float) -> None:
        """SIGTERM, time to drain, then SIGKILL."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(drain_s + _KILL_S):
                await self._process.wait()
        await self.kill()

    async def kill(self) -> None:
        """SIGKILL to the child's whole process group; it is gone, and its last words are heard."""
        await _end(self._process)
        await self.instance.ended(LAST_WORDS_S)


Place = Callable[[InstanceSpec], tuple[InstanceSpec, tuple[str, ...]]]
"""Where an instance runs: its specification as it holds there (its own address), and the words of a
command that starts another one there and becomes it, such as ``ip netns exec NAME``."""


def _here(spec: InstanceSpec) -> tuple[InstanceSpec, tuple[str, ...]]:
    return spec, ()


class ProcessHost:
    """Starts children of this process."""

    def __init__(self, place: Place = _here) -> None:
        self._place = place

    async def start(self, spec: InstanceSpec) -> Hosted:
        """Start a child and return when its instance serves."""
        spec, words = self._place(spec)
        process = await asyncio.create_subprocess_exec(
            *(*words, sys.executable),
            *("-m", "cluster"),
            stdin=PIPE,
            stdout=PIPE,
            env=child_environment(spec.config),
            start_new_session=True,
        )
        try:
            served = await _introduce(process, spec)
        except BaseException:
            await _end(process)
            raise
        return HostedProcess(process, connect(served.address, spec), spec.id)

    async def close(self) -> None:
        """Nothing is held beyond the children."""


async def _introduce(process: Process, spec: InstanceSpec) -> Served:
    """Hand the child its specification and read where it serves."""
    if process.stdin is None or process.stdout is None:
        raise Unavailable("the child has no pipes")
    process.stdin.write(msgspec.msgpack.encode(spec))
    with contextlib.suppress(ConnectionError):
        await process.stdin.drain()
    process.stdin.close()
    while True:
        try:
            line = await process.stdout.readline()
            if not line:
                raise Unavailable(f"{spec.id} ended while it started: {await process.wait()}")
            return msgspec.json.decode(line, type=Served)
        except ValueError:  # too long a line, or not ours: what libraries print when imported
            log.debug("%s says something else first", spec.id)


async def _end(process: Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
