"""Skip-join multi-level feedback queue: short jobs first, without knowing how long one is.

FastServe (arXiv 2305.05920, section 4.1). A job enters the level whose quantum covers its prefill,
which is known, and sinks a level with every quantum that it used up. Knows seconds of service.
"""

from collections.abc import Sequence
from functools import lru_cache
from math import log2

from scheduler import order
from scheduler.batching import pack, shared, split, step_of
from scheduler.costs import Costs
from triptych.engine.policies import Budget, Moment, Work

QUANTUM_S = 0.02
"""Of the first level; each next one has twice as much. FastServe: about one decode step."""
NUM_LEVELS = 10


class Mlfq:
    """Orders sequences by their level, within one by arrival. Stateless: the level is a function
    of prefill and service. Waits as ``order.shared`` and ``batching.shared``, which stand for
    FastServe's promotion after a starvation limit."""

    def __init__(self, costs: Costs) -> None:
        self._prefill_s = lru_cache(4096)(lambda count: costs.language_s(((0, count),), 0, 0))

    def order(self, waiting: Sequence[Work], moment: Moment, /) -> list[int]:
        """Who is admitted first."""
        queue = sorted(range(len(waiting)), key=lambda index: self._key(waiting[index]))
        return order.shared(queue, waiting, moment)

    def batching(self, ready: Sequence[Work], budget: Budget, moment: Moment, /) -> list[int]:
        """What the next step takes: a decode of a low level goes behind a high one's prefill."""
        decodes, chunks = split(ready)
        queue = sorted(decodes + chunks, key=lambda index: self._key(ready[index]))
        return step_of(pack(shared(queue, ready, moment), ready, budget), decodes, chunks)

    def level(self, work: Work) -> int:
        """0 is served first. From level ``e``, quanta up to level ``l`` add up to ``QUANTUM_S * (2
        ** l - 2 ** e)``."""
        enters = 1.0
        if work.claim.prefill_tokens:
            while enters * QUANTUM_S < self._prefill_s(work.claim.prefill_tokens):
                enters *= 2.0
        return min(int(log2(enters + work.served_s / QUANTUM_S)), NUM_LEVELS - 1)

    def _key(self, work: Work) -> tuple[int, int, int]:
        return self.level(work), work.arrival, work.start
