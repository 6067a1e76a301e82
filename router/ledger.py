"""The ledger: one ACCEPTED per request, exactly one terminal state, nothing behind it.

Append-only; in memory for what is open, in a file of JSON lines when one is named. Knows the legal
order of states (``core.lifecycle``), not who causes them.
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

import msgspec

from triptych.core.clock import Clock
from triptych.core.errors import InvariantBroken
from triptych.core.ids import RequestId, TenantId
from triptych.core.lifecycle import RequestState, can_follow


class Asked(msgspec.Struct, frozen=True):
    """The shape of an accepted request: sizes and keyed hashes, no word and no pixel."""

    arrival_s: float
    """When it knocked: the router's monotonic time, as ``Entry.at_s``."""
    prompt_tokens: int
    max_tokens: int
    slo: str
    block_tokens: int
    blocks: tuple[str, ...]
    """Keys of the prompt's full blocks, each also of all before it, salted by tenant."""
    pictures: tuple[tuple[str, int, int, int], ...] = ()
    """``(key, offset in the prompt, tokens in a row, rows)``"""


class Entry(msgspec.Struct, frozen=True):
    """One event of one request. ``at_s`` is the router's monotonic time."""

    at_s: float
    request: str
    state: str
    tenant: str = ""
    attempt: int = 0
    code: str = ""
    num_tokens: int = 0
    cached_tokens: int = 0
    """Of the prompt, in a terminal state; with several choices, the first one's."""
    asked: Asked | None = None
    """With ``accepted`` in a file."""


class Ledger:
    """Records the life of every accepted request and refuses an impossible one."""

    def __init__(self, clock: Clock, file: Path | None = None) -> None:
        self._clock = clock
        self.path = file
        """Where it is written, if it is."""
        self._file: TextIO | None = file.open("a", buffering=1) if file else None
        self._open: dict[RequestId, RequestState] = {}
        self.outcomes: Counter[str] = Counter()
        """Terminal states (and ``rejected``) so far; failures as ``failed:<code>``."""

    @property
    def num_open(self) -> int:
        """Accepted requests without a terminal state."""
        return len(self._open)

    def accept(self, request: RequestId, tenant: TenantId, asked: Asked | None = None) -> None:
        """A request passed admission and every check of its words."""
        if request in self._open:
            raise InvariantBroken(f"ledger: {request} was accepted before")
        self._open[request] = RequestState.ACCEPTED
        state = RequestState.ACCEPTED.value
        self._write(Entry(self._clock.now(), request, state, tenant, asked=asked))

    def move(self, request: RequestId, state: RequestState, attempt: int) -> None:
        """The request reached a stage; a retry may go back to an earlier one."""
        self._follow(request, state)
        self._open[request] = state
        self._write(Entry(self._clock.now(), request, state.value, attempt=attempt))

    def close(self, request: RequestId, state: RequestState, code: str = "", num_tokens: int = 0,
              cached_tokens: int = 0) -> None:  # fmt: skip
        """The one terminal state of the request."""
        if not state.is_terminal:
            raise InvariantBroken(f"ledger: {state.value} is not terminal")
        self._follow(request, state)
        del self._open[request]
        name = f"{state.value}:{code}" if state is RequestState.FAILED else state.value
        self.outcomes[name] += 1
        self._write(
            Entry(
                self._clock.now(), request, state.value, code=code, num_tokens=num_tokens,
                cached_tokens=cached_tokens,
            )
        )  # fmt: skip

    def reject(self, code: str) -> None:
        """Count a request that was refused before it was accepted. It leaves nothing behind."""
        self.outcomes[f"rejected:{code}"] += 1

    def shut(self) -> None:
        """Close the file, if any."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _follow(self, request: RequestId, state: RequestState) -> None:
        before = self._open.get(request)
        if before is None or not can_follow(before, state):
            raise InvariantBroken(f"ledger: {state.value} cannot follow {before} of {request}")

    def _write(self, entry: Entry) -> None:
        if self._file is not None:
            self._file.write(msgspec.json.encode(entry).decode() + "\n")


def check(lines: Iterable[str]) -> list[str]:
    """Read a ledger file again; what is wrong with it, a sentence each (N1, N12)."""
    states: dict[str, RequestState] = {}
    attempts: dict[str, int] = {}
    wrong: list[str] = []
    for line in lines:
        entry = msgspec.json.decode(line, type=Entry)
        state, before = RequestState(entry.state), states.get(entry.request)
        if before is None and state is not RequestState.ACCEPTED:
            wrong.append(f"{entry.request}: {state.value} before it was accepted")
        elif before is not None and not can_follow(before, state):
            wrong.append(f"{entry.request}: {state.value} behind {before.value}")
        if not state.is_terminal and entry.attempt < attempts.get(entry.request, 0):
            wrong.append(f"{entry.request}: attempt {entry.attempt} behind a later one")
        attempts[entry.request] = max(entry.attempt, attempts.get(entry.request, 0))
        states[entry.request] = state
    wrong += [
        f"{request}: no terminal state, last was {state.value}"
        for request, state in states.items()
        if not state.is_terminal
    ]
    return wrong
