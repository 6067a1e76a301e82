"""Earliest deadline first: what is due soonest, whatever it takes.

Optimal on one machine that is never overloaded (Liu and Layland, JACM 1973), and the baseline of
``scheduler.slack``, which also asks what is still to be done.
"""

from collections.abc import Sequence

from scheduler import order
from scheduler.batching import pack, shared, split, step_of
from triptych.engine.policies import Budget, Moment, Work


def edf_order(waiting: Sequence[Work], moment: Moment, /) -> list[int]:
    """Of the highest priority those whose next token is due first. Waits as ``order.shared``."""
    queue = sorted(range(len(waiting)), key=lambda index: _key(waiting[index]))
    return order.shared(queue, waiting, moment)


def edf_batching(ready: Sequence[Work], budget: Budget, moment: Moment, /) -> list[int]:
    """The same of pieces, decodes and prefill alike. Waits as ``batching.shared``."""
    decodes, chunks = split(ready)
    queue = sorted(decodes + chunks, key=lambda index: _key(ready[index]))
    return step_of(pack(shared(queue, ready, moment), ready, budget), decodes, chunks)


def _key(work: Work) -> tuple[int, float, int, int]:
    """Without a bound on its tokens a request's own deadline counts."""
    return -work.claim.priority, min(work.due_s, work.claim.end_s), work.arrival, work.start
