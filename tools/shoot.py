"""Pictures of a report: opens it in headless Chromium and writes PNGs, light and dark.

``python tools/shoot.py report.html docs/figures/name``. Also what a test asks: what the page's
console said, and its finished document. Knows command lines of browsers, not what a page shows.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_WAIT_MS = 6000
_TIMEOUT_S = 120
_CONSOLE = re.compile(r"CONSOLE[:(\d)]*\d*\S* (.*)")


def browser() -> str | None:
    """Path of a Chromium, if this machine has one."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def _run(url: str, *options: str) -> subprocess.CompletedProcess[str]:
    path = browser()
    if path is None:
        raise FileNotFoundError(f"no browser: none of {', '.join(NAMES)} is installed")
    with tempfile.TemporaryDirectory() as profile:
        return subprocess.run(
            [
                path, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                "--disable-dev-shm-usage", "--no-first-run", f"--user-data-dir={profile}",
                "--enable-logging=stderr", f"--virtual-time-budget={_WAIT_MS}", *options, url,
            ],
            capture_output=True, text=True, timeout=_TIMEOUT_S, check=True,
        )  # fmt: skip


def look(page: Path) -> tuple[str, list[str]]:
    """The document as it is once its scripts have run, and what they wrote to the console (errors
    among it)."""
    done = _run(page.resolve().as_uri(), "--dump-dom", "--window-size=1280,2000")
    return done.stdout, _CONSOLE.findall(done.stderr)


def shoot(page: Path, picture: Path, theme: str, size: tuple[int, int] = (1280, 4600)) -> None:
    """Write a PNG of the page from its top, ``size`` in pixels."""
    window = f"--window-size={size[0]},{size[1]}"
    url = f"{page.resolve().as_uri()}#theme={theme}"
    _run(url, window, f"--screenshot={picture.resolve()}")


def main(arguments: list[str]) -> int:
    """``REPORT.html STEM [HEIGHT]``: writes ``STEM-light.png`` and ``STEM-dark.png``."""
    if len(arguments) not in {2, 3}:
        print("usage: shoot.py REPORT.html STEM [HEIGHT]", file=sys.stderr)
        return 2
    page, stem = Path(arguments[0]), arguments[1]
    height = int(arguments[2]) if len(arguments) == 3 else 4600
    for theme in ("light", "dark"):
        picture = Path(f"{stem}-{theme}.png")
        shoot(page, picture, theme, (1280, height))
        print(f"written: {picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
