"""What every test is held to: it leaves no process, thread, shared memory or descriptor behind.

Markers that cannot run here skip themselves and say why.
"""

import gc
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch

if not torch.cuda.is_available():
    # Read when Triton is imported, which Transformers does: before anything that imports these.
    os.environ["TRITON_INTERPRET"] = "1"

hypothesis.settings.register_profile(
    "search", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.register_profile(
    "repeat", hypothesis.settings.get_profile("search"), derandomize=True
)
hypothesis.settings.load_profile("repeat")
"""The same examples in every run: who changes nothing breaks nothing. New ones are drawn by
``--matrix``. An example's time says nothing on a machine that others use too."""

_PATIENCE_S = 5.0
_TOLERATED_FDS = 4
"""A first use may open what stays open by design: an epoll, a urandom, a socket pair."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--matrix`: full products too, of which every run has a covering array."""
    parser.addoption("--matrix", action="store_true", help="also run tests marked `matrix`")


def pytest_configure(config: pytest.Config) -> None:
    """New examples for the matrix; before tests are read, as their settings begin with these."""
    if config.getoption("matrix"):
        hypothesis.settings.load_profile("search")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """For `.ci/run`, as make hides it: 1 means that all tests were run and some failed."""
    if not hasattr(session.config, "workerinput"):
        folder = session.config.rootpath / ".pytest_cache"
        folder.mkdir(exist_ok=True)
        (folder / "status").write_text(str(int(exitstatus)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Tests wait about as much as they compute: one process more than there are cores."""
    return len(os.sched_getaffinity(0)) + 1


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """`test_tiny` first: it says in seconds whether anything works at all. Skip what cannot run."""
    items.sort(key=lambda item: _place(item, hasattr(config, "workerinput")))
    if not config.getoption("matrix"):
        left_out = [item for item in items if item.get_closest_marker("matrix")]
        items[:] = [item for item in items if not item.get_closest_marker("matrix")]
        config.hook.pytest_deselected(items=left_out)
    wanting = [item for item in items if item.get_closest_marker("gpu")]
    if wanting and not _has_cuda():
        for item in wanting:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def _place(item: pytest.Item, is_shared: bool) -> int:
    """Several processes begin with what takes long, so that none is alone with it in the end."""
    if item.path.name == "test_tiny.py":
        return 0
    is_long = item.get_closest_marker("slow") or item.get_closest_marker("ray")
    return 1 if is_shared and is_long else 2


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(autouse=True)
def no_children_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a child process running. Ray's own go with its fixture's scope."""
    if request.node.get_closest_marker("ray"):
        yield
        return
    before = _children()
    yield
    left = _settle(lambda: _children() - before)
    assert not left, f"child processes left: {sorted(map(_command, left))}"


@pytest.fixture(autouse=True)
def no_segments_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a file of ours in /dev/shm."""
    before = _segments()
    yield
    left = _settle(lambda: _segments() - before)
    assert not left, f"shared memory left in /dev/shm: {sorted(left)}"


@pytest.fixture
def no_leak() -> Iterator[None]:
    """For tests that ask for it: also no thread and no descriptor beyond the tolerance."""
    threads, fds = _threads(), _fds()
    yield
    left = _settle(lambda: _threads() - threads)
    assert not left, f"threads left: {sorted(thread.name for thread in left)}"
    extra = _settle(lambda: _more(_fds() - fds, _TOLERATED_FDS))
    assert not extra, f"descriptors left: {sorted(extra)}"


def _settle(look: Callable[[], set[Any]]) -> set[Any]:
    """What is left after things had time to end."""
    deadline = time.monotonic() + _PATIENCE_S
    left = look()
    while left and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.02)
        left = look()
    return left


def _children() -> set[int]:
    """Living children of this process, over all its threads; zombies do not count."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        try:
            found.update(int(pid) for pid in (task / "children").read_text().split())
        except OSError:
            continue
    return {pid for pid in found if _state(pid) not in {"Z", ""} and not _is_pythons_own(pid)}


def _is_pythons_own(pid: int) -> bool:
    """multiprocessing keeps one tracker and one fork server for the life of the process."""
    command = _command(pid)
    return "resource_tracker" in command or "forkserver" in command


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def _command(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return f"{pid} " + b" ".join(words).decode(errors="replace")[:120]
    except OSError:
        return str(pid)


def _segments() -> set[str]:
    """Entries of ours: the executor, the decoder and the transfer name theirs `triptych`."""
    try:
        return {name for name in os.listdir("/dev/shm") if "triptych" in name or "psm_" in name}
    except OSError:
        return set()


def _threads() -> set[threading.Thread]:
    return set(threading.enumerate())


def _fds() -> set[str]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")
        except OSError:
            continue
    return found


def _more(extra: set[str], tolerated: int) -> set[str]:
    return extra if len(extra) > tolerated else set()
