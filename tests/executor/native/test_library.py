"""How the library comes about: a compiler, a folder that is ours, one file for a source."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.flow.served import ROOT
from triptych.core.errors import ConfigError
from triptych.executor.native import library
from triptych.executor.native.library import Library, NativeUnavailable
from triptych.executor.native_operations import Native
from triptych.executor.operations import PLAIN, Needs, operations

NEEDS = Needs("cpu", "float32", 1, 64, 80, 16)
LOAD = (sys.executable, "-c", "from triptych.executor.native.library import load; load()")
load = library.load.__wrapped__


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty cache folder, and nothing remembered from before."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library.load.cache_clear()
    yield tmp_path / "triptych"
    library.load.cache_clear()


def test_compiled_once(home):
    first = load()
    (path,) = home.iterdir()
    assert path.stat().st_mode & 0o777 == 0o500
    assert home.stat().st_mode & 0o777 == 0o700
    written = path.stat().st_mtime_ns
    assert load().panel == first.panel
    assert [path.stat().st_mtime_ns for path in home.iterdir()] == [written]


def test_several_processes_at_once(home):
    started = [subprocess.Popen(LOAD, cwd=ROOT) for _ in range(3)]
    assert [each.wait() for each in started] == [0, 0, 0]
    assert [path.suffix for path in home.iterdir()] == [".so"]


def test_another_source_is_another_file(home, monkeypatch, tmp_path):
    load()
    changed = tmp_path / "steps.c"
    changed.write_text(library.SOURCE.read_text() + "\nint more(void) { return 1; }\n")
    monkeypatch.setattr(library, "SOURCE", changed)
    load()
    assert len(list(home.iterdir())) == 2


def test_a_part_that_was_changed_is_another_file(home, monkeypatch, tmp_path):
    load()
    for part in library.SOURCE.parent.glob("*.[ch]"):
        (tmp_path / part.name).write_bytes(part.read_bytes())
    with (tmp_path / "crew.h").open("a") as file:
        file.write("/* another */\n")
    monkeypatch.setattr(library, "_PARTS", tmp_path)
    load()
    assert len(list(home.iterdir())) == 2


def test_no_compiler(home, monkeypatch, caplog):
    monkeypatch.setenv("PATH", str(home))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(NativeUnavailable, match="no C compiler"):
        load()
    assert operations("auto", NEEDS, deterministic=False) is PLAIN
    assert "slower" in caplog.text
    with pytest.raises(ConfigError, match=r"model\.kernels: no C compiler"):
        operations("native", NEEDS, deterministic=False)


def test_a_source_that_does_not_compile(home, monkeypatch, tmp_path):
    broken = tmp_path / "steps.c"
    broken.write_text("int run(void) { return nothing; }")
    monkeypatch.setattr(library, "SOURCE", broken)
    with pytest.raises(NativeUnavailable, match="nothing"):
        load()
    assert not list(home.iterdir()), "half a library was left"


def test_a_folder_that_others_write_to_is_not_used(home, monkeypatch, tmp_path):
    home.mkdir()
    home.chmod(0o777)
    monkeypatch.setattr(library.tempfile, "gettempdir", lambda: str(tmp_path / "other"))
    load()
    assert not list(home.iterdir())
    (own,) = (tmp_path / "other").iterdir()
    assert own.name == f"triptych-{os.getuid()}"
    own.chmod(0o777)
    with pytest.raises(NativeUnavailable, match="only this user"):
        load()


def test_a_file_that_is_no_library(home):
    load()
    (path,) = home.iterdir()
    path.unlink()  # what is loaded lives on
    path.write_text("no library")
    done = subprocess.run(LOAD, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "NativeUnavailable" in done.stderr
    assert "cannot be used" in done.stderr


def test_what_it_can_compute():
    assert isinstance(operations("auto", NEEDS, deterministic=True), Native)
    for change, why in (
        ({"device": "cuda"}, "on a CPU"),
        ({"dtype": "bfloat16"}, "float32"),
        ({"text_head": 40}, "multiple of 16"),
    ):
        needs = NEEDS._replace(**change)
        with pytest.raises(ConfigError, match=rf"model\.kernels: .*{why}"):
            operations("native", needs, deterministic=False)
        if needs.device == "cpu":
            assert operations("auto", needs, deterministic=False) is PLAIN


def test_an_unknown_operation_stops_the_walk():
    made: Library = library.load()
    noted = (library.Operation * 2)(library.Operation(kind=99), library.Operation(kind=99))
    with pytest.raises(MemoryError):
        made.run(noted)
    assert Path(library.SOURCE).name == "steps.c"


def test_a_compiler_with_words_of_its_own(home, monkeypatch):
    monkeypatch.setenv("CC", "cc -DMORE=1")
    assert load().panel > 0
    monkeypatch.setenv("CC", "nothing -O2")
    with pytest.raises(NativeUnavailable, match="nothing"):
        load()


def test_a_link_is_no_folder_of_ours(home, monkeypatch, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    home.symlink_to(tmp_path / "elsewhere")
    monkeypatch.setattr(library.tempfile, "gettempdir", lambda: str(tmp_path / "other"))
    load()
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_library_that_others_can_write_to_is_not_loaded(home):
    load()
    (path,) = home.iterdir()
    path.chmod(0o722)
    with pytest.raises(NativeUnavailable, match="others"):
        load()
