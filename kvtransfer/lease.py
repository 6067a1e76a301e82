"""Who may free promised memory: the lease of one transfer.

    PROMISED --fetch--> OPEN --ack--> TAKEN --> RELEASED
        |                 |                       ^
        | nobody came,    | taker fenced off      |
        | withdrawn       '-----------------------|
        '-----------------------------------------'

The fence: a taker may use what it copied only once it was told ``Acked``, and ``Acked`` is sent
only while the lease is held. So once a lease is released otherwise, nothing that a slow taker still
reads can ever count, and the memory may be reused at once. Knows states, no blocks and no sockets.
"""

from enum import Enum

import msgspec

from triptych.core.errors import InvariantBroken
from triptych.core.ids import Handle


class LeaseState(Enum):
    """Life of a lease."""

    PROMISED = "promised"
    OPEN = "open"
    TAKEN = "taken"
    RELEASED = "released"


class Release(Enum):
    """Why the memory is free again."""

    TAKEN = "taken"
    """The taker has it and said so."""
    WITHDRAWN = "withdrawn"
    """The owner took it back."""
    FAILED = "failed"
    """The producer could not finish it."""
    EXPIRED = "expired"
    """Nobody came."""
    REVOKED = "revoked"
    """Nobody had come, and others needed the room."""
    TAKER_LOST = "taker_lost"
    """The taker vanished, fell silent or cancelled; its connection is closed."""


_NEXT = {
    LeaseState.PROMISED: {LeaseState.OPEN, LeaseState.RELEASED},
    LeaseState.OPEN: {LeaseState.TAKEN, LeaseState.RELEASED},
    LeaseState.TAKEN: {LeaseState.RELEASED},
    LeaseState.RELEASED: set[LeaseState](),
}


class Lease:
    """One transfer's claim on memory."""

    __slots__ = ("deadline_s", "epoch", "heard_s", "id", "owner", "reason", "state", "taker")

    def __init__(self, id: Handle, epoch: int, owner: str) -> None:  # noqa: A002
        self.id = id
        self.epoch = epoch
        self.owner = owner
        self.state = LeaseState.PROMISED
        self.taker = ""
        """Instance that fetches; empty while nobody does."""
        self.deadline_s: float | None = None
        """When to give up on a taker that never came; set once the offer is complete. It does
        not act while a taker is connected."""
        self.heard_s: float | None = None
        """Last sign of life of the taker."""
        self.reason: Release | None = None

    def _move(self, state: LeaseState) -> None:
        if state not in _NEXT[self.state]:
            raise InvariantBroken(f"lease: {self.state.value} cannot become {state.value}")
        self.state = state

    def open(self, taker: str, now_s: float) -> None:
        """A taker came."""
        self._move(LeaseState.OPEN)
        self.taker = taker
        self.heard_s = now_s

    def take(self, now_s: float) -> None:
        """The taker's ack came."""
        self._move(LeaseState.TAKEN)
        self.heard_s = now_s

    def release(self, reason: Release) -> None:
        """The memory is free. The caller vouches that no taker can be told otherwise."""
        if (reason is Release.TAKEN) != (self.state is LeaseState.TAKEN):
            raise InvariantBroken(f"lease: {self.state.value} released as {reason.value}")
        is_untaken = self.state is LeaseState.PROMISED
        if reason in (Release.EXPIRED, Release.REVOKED) and not is_untaken:
            raise InvariantBroken(f"lease: {reason.value} while a taker was connected")
        self._move(LeaseState.RELEASED)
        self.reason = reason

    def has_expired(self, now_s: float) -> bool:
        """Whether nobody came in time."""
        return (
            self.state is LeaseState.PROMISED
            and self.deadline_s is not None
            and now_s >= self.deadline_s
        )

    def check(self) -> None:
        """Raise InvariantBroken if the fields contradict each other."""
        has_taker = bool(self.taker)
        if self.state is LeaseState.PROMISED and has_taker:
            raise InvariantBroken("lease: promised, yet somebody takes it")
        if self.state in (LeaseState.OPEN, LeaseState.TAKEN) and not has_taker:
            raise InvariantBroken("lease: open without a taker")
        if (self.reason is not None) != (self.state is LeaseState.RELEASED):
            raise InvariantBroken("lease: a reason without a release, or a release without one")


class Verdict(msgspec.Struct, frozen=True):
    """How an offer ended, and what a taker that comes (or is there) is told."""

    reason: Release
    code: str = "data_loss"
    detail: str = ""


class Ended(Exception):
    """The taker cannot have the offer; if it waits for that, an Abort follows."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.detail)
        self.verdict = verdict
