"""Setting up: what is decided without installing anything. The rest is every `make test`."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def environment():
    path = ROOT / "tools" / "environment.py"
    spec = importlib.util.spec_from_file_location("environment", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_stamp_depends_on_the_lock_and_on_the_place(environment, tmp_path):
    lock = tmp_path / "constraints.txt"
    lock.write_text("torch==1\n")
    environment.INPUTS = (str(lock),)
    first = environment.fingerprint("here")
    assert first == environment.fingerprint("here")
    assert first != environment.fingerprint("there")
    lock.write_text("torch==2\n")
    assert first != environment.fingerprint("here")


@pytest.mark.parametrize("extra", ["", "dev"])
def test_a_finished_environment_is_left_alone(environment, tmp_path, extra):
    """A development environment serves as a runtime one too."""
    (tmp_path / ".triptych-dev").write_text(environment.fingerprint(str(tmp_path)))
    done = subprocess.run(
        [sys.executable, environment.__file__, "--venv", str(tmp_path), "--extra", extra],
        capture_output=True, text=True, timeout=PATIENCE_S, check=True,
    )  # fmt: skip
    assert done.stdout == ""


def test_torch_is_installed_first_at_its_locked_version(environment):
    (_, first), (_, second) = environment.installs("dev")
    assert first[0].startswith("torch==")
    assert "+" not in first[0]
    assert f"{ROOT}[dev]" in second


def test_an_old_python_is_refused_with_a_way_out(environment, monkeypatch, capsys):
    monkeypatch.setattr(environment.sys, "version_info", (3, 9, 2, "final", 0))
    monkeypatch.setattr(environment.sys, "argv", ["environment.py"])
    assert environment.main() == 1
    assert "3.11 or newer" in capsys.readouterr().err


def test_python_without_venv_is_told_what_to_install(environment, monkeypatch, tmp_path, capsys):
    fails = tmp_path / "python3"
    fails.write_text("#!/bin/sh\nexit 1\n")
    fails.chmod(0o755)
    monkeypatch.setattr(environment.sys, "executable", str(fails))
    assert environment.make_venv(str(tmp_path / "venv")) is None
    assert "apt-get install -y python3-venv" in capsys.readouterr().err


def test_a_failed_install_shows_what_pip_said(environment, monkeypatch, capsys):
    options = ["--no-index", "no-such-package-of-ours"]
    assert environment.install(sys.executable, "something", options) is False
    assert "no-such-package-of-ours" in capsys.readouterr().err


def test_size_counts_code_without_comments_and_docstrings(tmp_path):
    spec = importlib.util.spec_from_file_location("size", ROOT / "tools" / "size.py")
    size = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(size)
    text = '"""What."""\n\n# why\nx = (\n    1\n)\n\n\ndef f():\n    """Doc."""\n    return x\n'
    path = tmp_path / "a.py"
    path.write_text(text)
    assert size.code_lines(path, text) == 5
    assert size.room_of("triptych/core/ids.py") == "triptych/core"
    assert size.room_of("router/journey.py") == "router"
