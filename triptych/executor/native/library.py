"""``steps.c`` and its parts as a library: compiled by the machine's C compiler, once for a source
and a machine.

The result is kept in the user's cache folder. Knows compilers, files and the layout of one
operation; not what operations compute.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("steps.c")
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-shared", "-fPIC", "-pthread")
KINDS = (
    *("product", "norm", "silu_mul", "embed", "angles", "write", "attend", "attend_tiles"),
    *("patches", "attend_spans"),
)
"""In the order of the source."""
_PARTS = SOURCE.parent
_COMPILERS = ("cc", "gcc", "clang")
_TIMEOUT_S = 120.0
_NUMBERS = ("kind", "rows", "width", "inner", "heads", "kv_heads", "head_dim", "block_size")
_POINTERS = ("a", "b", "c", "d", "out")


class NativeUnavailable(Exception):
    """Why there is no library on this machine."""


class Operation(ctypes.Structure):
    """``Operation`` of ``steps.c``, whose comments say what the fields are."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in _NUMBERS),
        ("block_stride", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in _POINTERS),
        ("number", ctypes.c_float),
    )


class Library:
    """The loaded functions. Calls give Python's lock away: other threads go on meanwhile."""

    def __init__(self, path: Path) -> None:
        loaded = ctypes.CDLL(str(path))
        self._run: Any = loaded.run
        self._run.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_int)
        self.panel: int = loaded.panel_width()
        """Columns of a product's weights that lie side by side."""

        self._num_helped: Any = loaded.num_helped
        self._num_helped.restype = ctypes.c_long
        self._muster: Any = loaded.muster
        self._muster.argtypes = (ctypes.c_int,)
        self._set_cores: Any = loaded.set_cores
        self._set_cores.argtypes = (ctypes.c_int,)

    @property
    def num_helped(self) -> int:
        """Parts of operations that other threads than a step's own have computed, so far."""
        return int(self._num_helped())

    def muster(self, threads: int) -> None:
        """Start the helpers of ``threads`` threads, as nice as the thread that calls."""
        self._muster(threads)

    def set_cores(self, cores: int) -> None:
        """How many cores there are for whoever helps; 0: as the system says."""
        self._set_cores(cores)

    def run(self, operations: "ctypes.Array[Operation]", rows: int = 0, threads: int = 1) -> None:
        """Walk them, each on ``rows`` rows if that is given; of ``threads`` threads the others help
        with large ones as long as there are idle cores. Raises MemoryError."""
        if self._run(ctypes.addressof(operations), len(operations), rows, threads) >= 0:
            raise MemoryError("no memory for the scores of a step")


@functools.cache
def load() -> Library:
    """The library of this process. Raises NativeUnavailable with the reason."""
    compiler = _compiler()
    folder = _folder()
    path = folder / f"steps-{_key(compiler)}.so"
    try:
        if not path.exists():
            _compile(compiler, path)
        if not _is_ours(path, stat.S_ISREG):
            raise NativeUnavailable(f"{path} could have been written by others")
        return Library(path)
    except OSError as error:
        raise NativeUnavailable(f"{path} cannot be used: {error}") from error


def _compiler() -> tuple[str, ...]:
    """With words that belong to it, as ``CC`` may have."""
    named = os.environ.get("CC", "")
    for name, *more in (shlex.split(named),) if named else ((name,) for name in _COMPILERS):
        if found := shutil.which(name):
            return (found, *more)
    raise NativeUnavailable(f"no C compiler ({named or ', '.join(_COMPILERS)}) is installed")


def _folder() -> Path:
    """A folder that nobody but us can write to: what lies there is executed."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    for folder in (base / "triptych", Path(tempfile.gettempdir()) / f"triptych-{os.getuid()}"):
        if not folder.is_absolute():
            continue  # nobody knows where the user lives
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if _is_ours(folder, stat.S_ISDIR) and os.access(folder, os.W_OK):
                return folder
        except OSError:
            continue
    raise NativeUnavailable("there is no cache folder that only this user can write to")


def _is_ours(path: Path, is_kind: Callable[[int], bool]) -> bool:
    """Whether it is of that kind itself, and no link, and nobody but us can write to it."""
    found = path.lstat()
    is_shared = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return is_kind(found.st_mode) and found.st_uid == os.getuid() and not is_shared


def _key(compiler: tuple[str, ...]) -> str:
    """Changes with the source, the compiler and what this processor can."""
    state = hashlib.sha256(SOURCE.read_bytes())
    for header in sorted(_PARTS.glob("*.h")):
        state.update(header.read_bytes())
    version = _said((*compiler, "--version"))
    for part in (*FLAGS, *compiler, version, platform.machine(), _features()):
        state.update(part.encode())
    return state.hexdigest()[:24]


def _features() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _compile(compiler: tuple[str, ...], path: Path) -> None:
    """Beside its place and then moved there: several processes may begin at once."""
    handle, name = tempfile.mkstemp(".so", dir=path.parent)
    os.close(handle)
    try:
        _said((*compiler, *FLAGS, f"-I{_PARTS}", "-o", name, str(SOURCE), "-lm"))
        os.chmod(name, 0o500)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def _said(words: Sequence[str]) -> str:
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=_TIMEOUT_S)
    except subprocess.CalledProcessError as error:
        raise NativeUnavailable(f"{words[0]}: {error.stderr.strip()[-500:]}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NativeUnavailable(f"{words[0]}: {error}") from error
    return done.stdout
