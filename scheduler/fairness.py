"""Nobody waits for ever: some turns go to who waits longest, whatever a policy prefers.

Knows turns and indices; not what is waited for. An engine's turn is over only when the first of the
order had it, so a turn that is owed cannot be lost for want of room.
"""

from triptych.engine.policies import Moment

SHARE = 16
"""One turn in so many. Who has ``n`` before it in order of waiting gets its turn within
``SHARE * (n + 1)`` turns; and no more than one turn in ``SHARE`` is spent against the policy."""


def is_owed(moment: Moment) -> bool:
    """Whether this turn is for who waits longest."""
    return moment.number % SHARE == SHARE - 1


def in_front(index: int, queue: list[int]) -> list[int]:
    """``queue`` with ``index``, which is in it, first."""
    return [index, *(other for other in queue if other != index)]
