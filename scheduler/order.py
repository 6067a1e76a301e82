"""In which order waiting sequences are admitted."""

from collections.abc import Sequence

from triptych.engine.policies import Work


def fcfs(waiting: Sequence[Work]) -> list[int]:
    """First come, first served. A preempted sequence keeps its place, so it comes back first."""
    return sorted(range(len(waiting)), key=lambda index: waiting[index].arrival)
