"""What makes a figure readable later: the machine, its load, the versions; written beside the rows.

Knows files and this machine, not what was measured.
"""

import os
import platform
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

_PACKAGES = ("torch", "transformers", "ray", "triptych")


def machine(device: str = "cpu") -> str:
    """This machine in a few words."""
    return f"{_processor()}, {len(os.sched_getaffinity(0))} cores, {device}"


def load() -> float:
    """How busy the machine is already; says so if it shows in figures."""
    busy = os.getloadavg()[0]
    if busy > 0.3:
        print(f"note: the machine is busy already (load {busy:.1f}); the figures will show it")
    return busy


def write(out: Path, name: str, load_before: float, found: dict[str, Any]) -> tuple[Path, Path]:
    """Write ``found`` as JSON with what is needed to read it; gives that file and a name for a
    picture beside it."""
    out.mkdir(parents=True, exist_ok=True)
    stem = time.strftime("%Y%m%d-%H%M%S") + (f"-{name}" if name else "")
    document = {**surroundings(load_before), **found}
    data = out / f"{stem}.json"
    data.write_bytes(msgspec.json.format(msgspec.json.encode(document)))
    return data, out / f"{stem}.png"


def surroundings(load_before: float) -> dict[str, Any]:
    """What figures depend on, beside what was measured."""
    return {
        "machine": machine(),
        "load_before": load_before,
        "python": platform.python_version(),
        "packages": {package: _version(package) for package in _PACKAGES},
    }


def say(text: str) -> None:
    """Progress: on a terminal a line may be replaced, in a file only whole lines appear."""
    if sys.stdout.isatty():
        sys.stdout.write(text)
    elif text.endswith("\n"):
        sys.stdout.write(text.removeprefix("\r\033[K"))
    sys.stdout.flush()


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
