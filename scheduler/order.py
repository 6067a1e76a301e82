"""In which order waiting sequences are admitted, by what they are, not by how long they take."""

from collections.abc import Sequence

from scheduler.fairness import in_front, is_owed
from triptych.engine.policies import START, Moment, Work

MOST_OVERTAKEN = 16
"""Sequences that may be admitted before an older one because more of their prompt is cached."""


def fcfs(waiting: Sequence[Work], _moment: Moment = START, /) -> list[int]:
    """First come, first served. A preempted sequence keeps its place, so it comes back first."""
    return sorted(range(len(waiting)), key=lambda index: waiting[index].arrival)


def longest_prefix(waiting: Sequence[Work], _moment: Moment = START, /) -> list[int]:
    """Those with most tokens in the tree first, so that a prefix is used while it is there (SGLang,
    arXiv 2312.07104, section 3.2), of equals the oldest. Who was overtaken ``MOST_OVERTAKEN`` times
    goes before all others, the oldest first: nobody waits for ever."""

    def urgency(index: int) -> tuple[bool, int, int]:
        work = waiting[index]
        is_starving = work.num_overtaken >= MOST_OVERTAKEN
        return not is_starving, 0 if is_starving else -work.hit, work.arrival

    return sorted(range(len(waiting)), key=urgency)


def shared(queue: list[int], waiting: Sequence[Work], moment: Moment) -> list[int]:
    """``queue``, in which a turn that is owed goes to the oldest: with ``n`` older ones nobody
    waits for more than ``SHARE * (n + 1)`` admissions."""
    if not is_owed(moment) or not queue:
        return queue
    return in_front(min(queue, key=lambda index: waiting[index].arrival), queue)
