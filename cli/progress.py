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


class Bar:
    """A bar with the time that is left, judged by the share that is done. Rewritten in place on a
    terminal; elsewhere a line now and then."""

    WIDTH = 24
    TERMINAL_S, FILE_S = 0.2, 15.0

    def __init__(self) -> None:
        self._start_s = self._shown_s = time.monotonic()
        self._is_terminal = sys.stderr.isatty()
        self._every_s = self.TERMINAL_S if self._is_terminal else self.FILE_S

    def __call__(self, text: str, share: float) -> None:
        """Show what is going on, ``share`` (0 to 1) of it done. A text that ends its line stays."""
        now_s = time.monotonic()
        if text.endswith("\n"):
            self._clear()
            sys.stderr.write(text)
        elif now_s - self._shown_s >= self._every_s:
            self._shown_s = now_s
            full = round(self.WIDTH * min(max(share, 0.0), 1.0))
            bar = "█" * full + "░" * (self.WIDTH - full)
            line = f"  {bar} {share:4.0%}  {self.left(share, now_s - self._start_s)}  {text}"
            self._clear()
            sys.stderr.write(line if self._is_terminal else line + "\n")
        sys.stderr.flush()

    @staticmethod
    def left(share: float, elapsed_s: float) -> str:
        """The time that is left, in words."""
        if share < 0.02:
            return "         "
        left_s = elapsed_s * (1 - share) / share
        minutes, seconds = divmod(round(left_s), 60)
        return f"{minutes:3d}:{seconds:02d} left" if minutes < 600 else "hours left"

    def done(self) -> None:
        """Take the bar away."""
        self._clear()
        sys.stderr.flush()

    def _clear(self) -> None:
        if self._is_terminal:
            sys.stderr.write("\r\x1b[K")
