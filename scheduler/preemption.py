"""Who gives its blocks back when they run out."""

from collections.abc import Sequence

from triptych.engine.policies import Work


def youngest_first(wanting: Work, running: Sequence[Work]) -> int | None:
    """The sequence that came last, if it came after ``wanting``: the oldest always gets on, so no
    two can take blocks from each other for ever."""
    younger = [index for index, work in enumerate(running) if work.arrival > wanting.arrival]
    return max(younger, key=lambda index: running[index].arrival, default=None)
