"""Shows a person that something long is going on. Terminal only; knows nothing of what it shows."""

import sys
import time


class Progress:
    """A line per step: what, and how long it took. Rewrites the line in place on a terminal."""

    def __init__(self) -> None:
        self._start_s = time.monotonic()
        self._is_terminal = sys.stderr.isatty()
        self._last = ""

    def __call__(self, text: str) -> None:
        """Show the step that begins (or the state reached)."""
        if text == self._last:
            return
        self._last = text
        elapsed_s = time.monotonic() - self._start_s
        line = f"  {elapsed_s:5.1f} s  {text}"
        if self._is_terminal:
            sys.stderr.write(f"\r\x1b[K{line}")
        else:
            sys.stderr.write(line + "\n")
        sys.stderr.flush()

    def done(self) -> None:
        """Leave the line."""
        if self._is_terminal and self._last:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
