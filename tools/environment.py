"""Make ``.venv`` with the locked packages: what ``make setup`` and ``make serve`` run first.

Knows Python's own library only, and runs under any Python 3 to say so when it is too old. Does
nothing when a stamp says that this pyproject.toml and constraints.txt are installed already.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
OLDEST = (3, 11)
EDITABLE = "editable_mode=compat"
"""setuptools then puts the folder itself on the path, and new packages are seen at once."""
LOCK = os.path.join(ROOT, "constraints.txt")
INPUTS = (os.path.join(ROOT, "pyproject.toml"), LOCK, os.path.abspath(__file__))


def main() -> int:
    """Bring the environment up to date and return the process's exit code."""
    parser = argparse.ArgumentParser(description="Make the virtual environment of the project.")
    parser.add_argument("--venv", default=os.path.join(ROOT, ".venv"))
    parser.add_argument("--extra", default="", help="runtime only, or an extra of pyproject: dev")
    options = parser.parse_args()
    options.venv = os.path.abspath(options.venv)
    if sys.version_info < OLDEST:
        return refuse(
            "Python {}.{} or newer is needed, this is {}.{}. Choose another one with\n"
            "  make PYTHON=/path/to/python3 ...".format(*OLDEST, *sys.version_info[:2])
        )
    stamp = os.path.join(options.venv, ".triptych-" + (options.extra or "runtime"))
    want = fingerprint(options.venv)
    if is_stamped(stamp, want) or is_stamped(os.path.join(options.venv, ".triptych-dev"), want):
        return 0
    print(f"Setting up {options.venv} (needed once; a few minutes)", flush=True)
    python = make_venv(options.venv)
    if python is None:
        return 1
    for title, arguments in installs(options.extra):
        if not install(python, title, arguments):
            return 1
    with open(stamp, "w") as file:
        file.write(want)
    return 0


def fingerprint(venv: str) -> str:
    """Changes when the lock, the project's requirements, the interpreter or the place changes."""
    state = hashlib.sha256(repr((venv, sys.version_info[:2])).encode())
    for path in INPUTS:
        with open(path, "rb") as file:
            state.update(file.read())
    return state.hexdigest()


def is_stamped(stamp: str, want: str) -> bool:
    """Whether the environment was finished with these inputs."""
    try:
        with open(stamp) as file:
            return file.read() == want
    except OSError:
        return False


def make_venv(venv: str) -> str | None:
    """Path of the environment's Python; None after saying what is missing."""
    python = os.path.join(venv, "bin", "python")
    version = "import sys; print(*sys.version_info[:2])"
    if os.path.exists(python):
        found = subprocess.run([python, "-c", version], stdout=subprocess.PIPE, check=False)
        if found.stdout.decode().split() == [str(part) for part in sys.version_info[:2]]:
            if subprocess.call([python, "-m", "pip", "--version"], stdout=subprocess.DEVNULL) == 0:
                return python
        shutil.rmtree(venv)
    for module in ("venv", "virtualenv"):
        made = subprocess.run(
            [sys.executable, "-m", module, venv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        if made.returncode == 0:
            return python
        shutil.rmtree(venv, ignore_errors=True)
    refuse(
        "This Python cannot make virtual environments. On Debian or Ubuntu:\n"
        "  sudo apt-get install -y python3-venv\n"
        "elsewhere:\n"
        f"  {sys.executable} -m pip install virtualenv"
    )
    return None


def installs(extra: str) -> tuple[tuple[str, list[str]], ...]:
    """Steps in order. torch comes first and alone, so that whichever build of it is configured
    (CPU or CUDA) is settled before anything else asks for it."""
    with open(LOCK) as file:
        torch = next(line.split()[0] for line in file if line.startswith("torch=="))
    project = ROOT + ("[" + extra + "]" if extra else "")
    locked = ["-c", LOCK]
    return (
        ("PyTorch", [torch, "setuptools", *locked]),
        (
            "the other packages and the project",
            ["--no-build-isolation", "--config-settings", EDITABLE, "-e", project, *locked],
        ),
    )


def install(python: str, title: str, arguments: list[str]) -> bool:
    """Run pip, showing what it is at; its whole output only if it fails."""
    command = [python, "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
    command += ["--progress-bar", "off", *arguments]
    began = time.monotonic()
    lines = []
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        for line in process.stdout or ():
            lines.append(line)
            show(title, line.strip(), time.monotonic() - began)
    failed = process.returncode != 0
    clear = "\r\033[K" if sys.stdout.isatty() else ""
    word = "FAILED" if failed else "done"
    print(f"{clear}  {title}: {word} in {time.monotonic() - began:.0f} s", flush=True)
    if failed:
        sys.stderr.write("".join(lines[-40:]))
        refuse(f"pip could not install {title}; its last lines are above.")
    return not failed


def show(title: str, line: str, seconds: float) -> None:
    """One line that is rewritten on a terminal; large downloads only where it is not."""
    match = re.match(r"(Collecting|Downloading|Building|Installing) (.*)", line)
    if match is None:
        return
    what = match.group(1).lower() + " " + os.path.basename(match.group(2))
    if sys.stdout.isatty():
        print(f"\r\033[K  {title}: {seconds:3.0f} s, {what[:60]}", end="", flush=True)
    elif re.search(r"\(\d{2,}\.?\d* MB\)", line) or match.group(1) == "Installing":
        print(f"  {title}: {seconds:3.0f} s, {what[:60]}", flush=True)


def refuse(message: str) -> int:
    """Say why nothing was set up; the exit code for that."""
    sys.stderr.write(message + "\n")
    return 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
