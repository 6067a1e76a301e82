"""Results that outlive a command: a file each, good for as long as the target file is the same.

That the code has changed since is not noticed.
"""

import hashlib
from pathlib import Path

import msgspec

from simulator.reproduce.outcome import Result


class Record(msgspec.Struct, frozen=True):
    """A result, and what it is the result of."""

    digest: str
    """Of the target file."""
    result: Result


class Kept:
    """A folder of results."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, target: Path, result: Result) -> None:
        """Write a result, in place of an older one."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._path(target).write_bytes(msgspec.json.encode(Record(_digest(target), result)))

    def of(self, target: Path) -> Result | None:
        """The result of just this target file, if there is one."""
        try:
            record = msgspec.json.decode(self._path(target).read_bytes(), type=Record)
        except (OSError, msgspec.MsgspecError):
            return None
        return record.result if record.digest == _digest(target) else None

    def _path(self, target: Path) -> Path:
        return self._folder / f"{target.stem}.json"


def _digest(target: Path) -> str:
    return hashlib.sha256(target.read_bytes()).hexdigest()
