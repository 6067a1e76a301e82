"""Seconds of the processor that processes have had, from the clocks that Linux keeps of them.

Not the wall's clock: whoever else is on the machine changes these figures little. Knows ``/proc``
and nothing of what the processes do.
"""

import os
import time
from pathlib import Path

from triptych.core.errors import ConfigError

_PROC = Path("/proc")
_SCHED = 2
"""Of the clocks of a process, the one of the scheduler's nanoseconds: ``clock_getcpuclockid(3)``
makes its number so of the process's."""


def cpu_s(pid: int) -> float:
    """Of all threads of a process until this moment, in seconds; 0 if it is gone."""
    if pid <= 0:  # to the clocks that is whoever asks
        return 0.0
    try:
        return time.clock_gettime((~pid << 3) | _SCHED)
    except OSError:
        return 0.0


def check() -> None:
    """Raise ConfigError where this system keeps no such clocks."""
    if not _PROC.exists() or not cpu_s(os.getpid()):
        raise ConfigError("profile: this system has no clocks of processes; use --steps-only")


def parent(pid: int) -> int:
    """Of a process; 0 if it is gone."""
    try:
        line = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return 0
    return int(line.rpartition(")")[2].split()[1])


def children(pid: int) -> list[int]:
    """Of a process, that live."""
    every = (int(folder.name) for folder in _PROC.iterdir() if folder.name.isdigit())
    return [each for each in every if parent(each) == pid]
