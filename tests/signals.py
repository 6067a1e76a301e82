"""Signals that have arrived. It knows Linux' /proc only."""

import os
import signal
import time
from pathlib import Path

from tests.patience import PATIENCE_S


def stop(pid: int) -> None:
    """SIGSTOP, and wait until it has stopped: a process takes a signal when it is given a
    processor, and its other threads run on until then. Raises TimeoutError."""
    os.kill(pid, signal.SIGSTOP)
    until_s = time.monotonic() + PATIENCE_S
    while not all(map(_is_stopped, Path(f"/proc/{pid}/task").iterdir())):
        if time.monotonic() > until_s:
            raise TimeoutError(f"{pid} does not stop")
        time.sleep(0.002)


def _is_stopped(thread: Path) -> bool:
    try:
        return (thread / "stat").read_text().rpartition(")")[2].split()[0] in ("T", "Z", "X")
    except OSError:
        return True
