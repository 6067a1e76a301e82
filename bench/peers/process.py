"""A server as processes of its own: started by a command line, ready when a path answers, ended.

Knows nothing of what is started. What it says is kept, and its end is told when it fails; what it
leaves in shared memory goes with it.
"""

import asyncio
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from bench.client import Target, get
from bench.systems import SystemFailed, end

START_TIMEOUT_S = 300.0
"""A server that compiles on its first start takes minutes."""
_LOOK_EVERY_S = 0.25
_TAIL_BYTES = 3000
_SHARED = " /dev/shm/"


class Process:
    """One command in a process group of its own."""

    def __init__(self, name: str, words: Sequence[str], environment: Mapping[str, str]) -> None:
        self._name, self._words, self._environment = name, tuple(words), dict(environment)
        self._process: asyncio.subprocess.Process | None = None
        self._said: IO[bytes] | None = None

    async def start(self) -> None:
        """Return when it runs. Raises SystemFailed if there is no such program."""
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed in stop
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._words,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=self._said,
                stderr=self._said,
                env={**os.environ, **self._environment},
                start_new_session=True,
            )
        except OSError as error:
            raise SystemFailed(f"{self._name}: {self._words[0]}: {error}") from error

    async def ready(self, target: Target, path: str, timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait until ``path`` answers 200. Raises SystemFailed with what was said last."""
        until_s = time.monotonic() + timeout_s
        while not await _answers(target, path):
            if self._process is None or self._process.returncode is not None:
                raise SystemFailed(f"{self._name} ended while starting:\n{self.tail()}")
            if time.monotonic() > until_s:
                raise SystemFailed(f"{self._name} was not ready in time:\n{self.tail()}")
            await asyncio.sleep(_LOOK_EVERY_S)

    def tail(self) -> str:
        """The end of what it said."""
        if self._said is None:
            return ""
        handle = self._said.fileno()  # whose offset the process shares: it must not be moved
        size = os.fstat(handle).st_size
        return os.pread(handle, _TAIL_BYTES, max(0, size - _TAIL_BYTES)).decode(errors="replace")

    async def stop(self) -> None:
        """End it and all that it started. Safe at any time."""
        process, self._process = self._process, None
        if process is not None:
            held = segments(process.pid)
            watch = asyncio.create_task(_watch(process.pid, held))
            try:
                await end(process)
            finally:
                watch.cancel()
                for segment in held:
                    segment.unlink(missing_ok=True)
        if self._said is not None:
            self._said.close()
            self._said = None


def segments(group: int) -> set[Path]:
    """Shared memory that the processes of a group have mapped: who is killed leaves it behind."""
    found: set[Path] = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(entry.name)) != group:
                continue
            lines = (entry / "maps").read_text().splitlines()
        except OSError:
            continue  # it ended meanwhile, or is somebody else's
        names = (line.split(maxsplit=5)[5] for line in lines if _SHARED in line)
        found.update(Path(name) for name in names if not name.endswith("(deleted)"))
    return found


async def _watch(group: int, held: set[Path]) -> None:
    """Note what is mapped until cancelled: one told to end while it starts goes on starting."""
    while True:
        await asyncio.sleep(_LOOK_EVERY_S)
        held |= segments(group)


def is_alive(pid: int) -> bool:
    """Whether a process runs: neither gone nor only waiting to be buried."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


async def _answers(target: Target, path: str) -> bool:
    try:
        status, _ = await get(target, path)
    except (OSError, EOFError, ValueError):
        return False
    return status == 200
