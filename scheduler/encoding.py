"""In which order pictures are encoded, where it is not that of their arrival."""

from collections.abc import Sequence
from math import floor

from triptych.engine.policies import Moment, Visual

WINDOW_S = 0.1
"""Requests whose pictures came within the same window compete; those of a later one wait."""


def twsrf(waiting: Sequence[Visual], _moment: Moment, /) -> list[int]:
    """Time-windowed shortest remaining first (SpaceServe, NeurIPS 2025): window by window, in each
    the requests with fewest visual tokens still to encode here, whose first token is nearest. So
    nobody waits for a picture of a request whose window is later than its own."""

    def urgency(index: int) -> tuple[int, int, float, int]:
        visual = waiting[index]
        window = floor(visual.since_s / WINDOW_S)
        return window, visual.left_tokens, visual.since_s, visual.arrival

    return sorted(range(len(waiting)), key=urgency)
