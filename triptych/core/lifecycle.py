"""States of requests and instances, and which may follow which. The only place that knows."""

from enum import Enum


class RequestState(Enum):
    """Life of a request in the ledger."""

    ACCEPTED = "accepted"
    ENCODING = "encoding"
    PREFILLING = "prefilling"
    DECODING = "decoding"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    FAILED = "failed"

    @property
    def is_terminal(self) -> bool:
        """Whether nothing may follow."""
        return self in _TERMINAL


_TERMINAL = frozenset(
    {
        RequestState.COMPLETED,
        RequestState.CANCELLED,
        RequestState.DEADLINE_EXCEEDED,
        RequestState.FAILED,
    }
)
_WORKING = frozenset({RequestState.ENCODING, RequestState.PREFILLING, RequestState.DECODING})


def can_follow(before: RequestState, after: RequestState) -> bool:
    """Whether ``after`` may be recorded behind ``before``. A retry goes back to an earlier stage;
    nothing goes back to ACCEPTED and nothing follows a terminal state."""
    return not before.is_terminal and (after in _WORKING or after in _TERMINAL)


class InstanceState(Enum):
    """Life of an instance as the cluster sees it."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    LOST = "lost"


class Stage(Enum):
    """The three kinds of work. A role is a set of stages."""

    ENCODE = "encode"
    PREFILL = "prefill"
    DECODE = "decode"

    __hash__ = object.__hash__  # members are single; an enum's own hash is a call in Python

    @property
    def letter(self) -> str:
        """``E``, ``P`` or ``D``, as in a topology."""
        return self.value[0].upper()


Role = frozenset[Stage]
"""The stages that one instance serves."""
