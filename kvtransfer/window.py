"""Credits of one link: how many chunks of one giver may be on their way here, and whose is next.

    wanted --the earliest deadline first--> granted --told to the giver--> out --chunk--> read, free

A giver sends a chunk only against a credit, so a slow taker is never buried, and what a link
carries next is decided where the deadlines are known. A fetch asks for credits only while its giver
has something ready: one that waits for a computation keeps nobody from the link. Any thread may
call.
"""

import threading
from collections.abc import Callable


class Claim:
    """One fetch's part in a window."""

    def __init__(self, window: "Window", deadline_s: float, wake: Callable[[], None]) -> None:
        self._window = window
        self.deadline_s = deadline_s
        self.wake = wake
        """Called on another's thread when credits were granted; must not call the window back."""
        self.wanted = 0
        self.granted = 0
        """Not told to the giver yet."""
        self.num_out = 0
        """Told, and neither used nor given back."""
        self.num_reading = 0

    def begin(self, count: int) -> int:
        """Up to ``count`` credits that nobody wants, to be told to the giver before it is known
        whether it has anything ready."""
        with self._window.lock:
            self.num_out = self._window.spare(count)
            return self.num_out

    def want(self, num_ready: int) -> None:
        """The giver has so many chunks ready."""
        with self._window.lock:
            self.wanted = max(0, num_ready - self.num_out - self.granted)
            self._window.free(0, self)

    def collect(self) -> int:
        """Credits to be told to the giver now."""
        with self._window.lock:
            count, self.granted = self.granted, 0
            self.num_out += count
            return count

    def began(self) -> bool:
        """A chunk came against a credit. Whether there was one."""
        with self._window.lock:
            if not self.num_out:
                return False
            self.num_out -= 1
            self.num_reading += 1
            return True

    def ended(self) -> None:
        """That chunk is read."""
        with self._window.lock:
            self.num_reading -= 1
            self._window.free(1, self)

    def returned(self, count: int) -> bool:
        """The giver has no use for ``count`` credits. Whether it had as many."""
        with self._window.lock:
            if count > self.num_out:
                return False
            self.num_out -= count
            self._window.free(count, self)
            return True

    def reset(self) -> None:
        """Nothing is wanted any more, and what was granted counts no more."""
        with self._window.lock:
            held = self.granted + self.num_out + self.num_reading
            self.wanted = self.granted = self.num_out = self.num_reading = 0
            self._window.free(held, self)


class Window:
    """The credits of one link."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.lock = threading.RLock()
        self._num_free = size
        self._claims: dict[Claim, None] = {}
        """In order of arrival, which decides between equal deadlines."""

    def claim(self, deadline_s: float, wake: Callable[[], None]) -> Claim:
        """A fetch begins; it must ``leave``."""
        claim = Claim(self, deadline_s, wake)
        with self.lock:
            self._claims[claim] = None
        return claim

    def leave(self, claim: Claim) -> None:
        """A fetch is over."""
        claim.reset()
        with self.lock:
            self._claims.pop(claim, None)

    def free(self, count: int, caller: Claim) -> None:
        """``count`` credits come back: grant what is free. With the lock held. ``caller`` needs not
        be woken: it is about to collect."""
        self._num_free += count
        while self._num_free:
            hungry = [claim for claim in self._claims if claim.wanted]
            if not hungry:
                return
            first = min(hungry, key=_deadline)
            first.wanted -= 1
            first.granted += 1
            self._num_free -= 1
            if first is not caller:
                first.wake()

    def spare(self, count: int) -> int:
        """Take up to ``count`` credits, but the last one is left for who knows what is ready. With
        the lock held."""
        taken = max(0, min(count, self._num_free - 1))
        self._num_free -= taken
        return taken

    @property
    def num_free(self) -> int:
        """Credits that nobody has: ``size`` when no fetch is on."""
        with self.lock:
            return self._num_free


def _deadline(claim: Claim) -> float:
    return claim.deadline_s
