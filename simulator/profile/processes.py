"""Seconds of the processor that processes have had, from Linux' accounts of their threads.

Not the wall's clock: whoever else is on the machine changes these figures little. Knows ``/proc``
and nothing of what the processes do.
"""

from pathlib import Path

from triptych.core.errors import ConfigError

_PROC = Path("/proc")


def cpu_s(pid: int) -> float:
    """Of all threads of a process that live, in seconds; 0 if it is gone."""
    total_ns = 0
    for account in (_PROC / str(pid) / "task").glob("*/schedstat"):
        try:
            total_ns += int(account.read_text().split()[0])
        except (OSError, IndexError, ValueError):
            continue  # a thread that has just ended
    return total_ns / 1e9


def check() -> None:
    """Raise ConfigError where this system keeps no such accounts."""
    if not (_PROC / "self" / "schedstat").exists():
        raise ConfigError("profile: this system has no /proc/PID/schedstat; use --steps-only")


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
