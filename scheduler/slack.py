"""Least slack over all remaining stages: who can least afford to wait and can still make it.

Slack is the time until the request's next token is due, less what its way there still takes: this
stage's rest, and the stages behind it as the router predicted them. Ours; on one machine least
slack first is Mok's (MIT TR-297, 1983). Knows ``Costs``; no queue.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import inf

from scheduler import order
from scheduler.batching import PATIENCE, pack, shared, split, step_of
from scheduler.costs import Costs
from scheduler.fairness import in_front, is_owed
from triptych.engine.policies import Budget, Claim, Moment, Visual, Work

MARGIN = 0.8
"""Of its gap, how long a step may take at most beside a decode that is late already: it catches up
one token in five."""
IN_HAND = 2
"""Tokens that a decode must be ahead of what it owes to stand back for prefill."""

Key = tuple[int, bool, float, int]
"""Priority, whether it is too late, slack, arrival: the least first. Of those that are too late,
whose slack says nothing any more, the oldest."""


class Slack:
    """One policy for admission, for steps and for pictures.

    Requests that are too late even if nothing else were computed go behind those of their priority
    that can still make it, so they drag nobody along; the turns of ``order.shared`` and
    ``batching.shared`` get on with them.
    """

    def __init__(self, costs: Costs) -> None:
        self._costs = costs
        self._prefill_s: Callable[[int, int], float] = lru_cache(8192)(
            lambda start, total: costs.language_s(((start, total - start),), 0, 0)
        )
        self._vision_s: Callable[[int], float] = lru_cache(4096)(
            lambda num_tokens: costs.vision_s((num_tokens,))
        )

    def order(self, waiting: Sequence[Work], moment: Moment, /) -> list[int]:
        """Who is admitted first. Nothing is left to do for KV that comes from elsewhere."""
        keys = [
            self._key(work, work.hit if work.claim.prefill_tokens else work.total, moment.now_s)
            for work in waiting
        ]
        return order.shared(sorted(range(len(waiting)), key=keys.__getitem__), waiting, moment)

    def encode(self, waiting: Sequence[Visual], moment: Moment, /) -> list[int]:
        """Whose pictures are encoded first; of a request all that wait here are to be encoded."""
        keys = [
            _key(
                visual.claim,
                _left_s(visual.claim, visual.due_s, moment.now_s)
                - self._vision_s(visual.left_tokens)
                - visual.claim.later_s,
                visual.arrival,
            )
            for visual in waiting
        ]
        queue = sorted(range(len(waiting)), key=keys.__getitem__)
        if queue and is_owed(moment):
            return in_front(min(queue, key=lambda index: waiting[index].arrival), queue)
        return queue

    def batching(self, ready: Sequence[Work], budget: Budget, moment: Moment, /) -> list[int]:
        """Decodes that owe a token; prefill that cannot wait a step longer; other decodes; other
        prefill by slack, what is too late last. Prefill is taken as long as the step ends before a
        token is due, but a chunk in any case after ``PATIENCE`` steps without one."""
        decodes, chunks = split(ready)
        queue, limit_s = decodes, inf
        if chunks:
            limit_s = min((_until_due_s(ready[i], moment.now_s) for i in decodes), default=inf)
            queue = self._queue(ready, (decodes, chunks), budget, moment.now_s, limit_s)
        queue = shared(queue, ready, moment)
        exempt = queue[0] if is_owed(moment) else None
        if exempt is None and chunks and budget.passed_over >= PATIENCE:
            decode_set = set(decodes)
            exempt = next(index for index in queue if index not in decode_set)
            queue = in_front(exempt, queue)
        allows = _Allowance(self._costs, ready, decodes, limit_s, exempt)
        return step_of(pack(queue, ready, budget, allows=allows), decodes, chunks)

    def _queue(
        self,
        ready: Sequence[Work],
        kinds: tuple[list[int], list[int]],
        budget: Budget,
        now_s: float,
        limit_s: float,
    ) -> list[int]:
        """All of ``ready`` in the order in which they may enter the step."""
        decodes, chunks = kinds
        keys: dict[int, Key] = {}  # by arrival: a sequence's pieces share that of the first
        for index in chunks:
            work = ready[index]
            if work.arrival not in keys:
                keys[work.arrival] = self._key(work, work.start, now_s)
        chunks = sorted(chunks, key=lambda index: keys[ready[index].arrival])
        context = sum(ready[index].start for index in decodes)
        full_s = self._costs.language_s(((0, budget.tokens),), len(decodes), context)
        step_s = min(limit_s, full_s)
        owing: list[int] = []
        ahead: list[int] = []
        for index in decodes:
            work = ready[index]
            is_ahead = work.due_s - now_s >= IN_HAND * work.claim.tpot_s
            (ahead if is_ahead else owing).append(index)
        owing.sort(key=lambda index: (-ready[index].claim.priority, ready[index].due_s))
        pressing: list[int] = []
        others: list[int] = []
        for index in chunks:
            _, is_late, slack_s, _ = keys[ready[index].arrival]
            (pressing if not is_late and slack_s < step_s else others).append(index)
        return owing + pressing + ahead + others

    def _key(self, work: Work, computed: int, now_s: float) -> Key:
        claim = work.claim
        rest_s = self._prefill_s(computed, work.total) if computed < work.total else 0.0
        # The first token leaves from here; the next one is due a gap later, behind what follows.
        behind_s = max(0.0, claim.later_s - claim.tpot_s)
        slack_s = _left_s(claim, work.due_s, now_s) - rest_s - behind_s
        return _key(claim, slack_s, work.arrival)


class _Allowance:
    """Which chunks fit into a step that ends before ``limit_s``. Remembers those it allowed."""

    def __init__(
        self,
        costs: Costs,
        ready: Sequence[Work],
        decodes: list[int],
        limit_s: float,
        exempt: int | None,
    ) -> None:
        self._costs = costs
        self._ready = ready
        self._decodes = len(decodes), sum(ready[index].start for index in decodes)
        self._limit_s = limit_s
        self._exempt = exempt
        self._taken: list[tuple[int, int]] = []

    def __call__(self, index: int) -> bool:
        if self._limit_s == inf:
            return True
        work = self._ready[index]
        chunks = [*self._taken, (work.start, work.end - work.start)]
        is_short = self._costs.language_s(chunks, *self._decodes) <= self._limit_s
        if is_short or index == self._exempt:
            self._taken = chunks
            return True
        return False


def _key(claim: Claim, slack_s: float, arrival: int) -> Key:
    is_late = slack_s < 0.0
    return -claim.priority, is_late, 0.0 if is_late else slack_s, arrival


def _left_s(claim: Claim, due_s: float, now_s: float) -> float:
    """Until the next token is due; a request without a bound on it is due at its deadline."""
    return min(due_s, claim.end_s) - now_s


def _until_due_s(work: Work, now_s: float) -> float:
    """How long a step may take for the sake of a decode."""
    return max(work.due_s - now_s, MARGIN * work.claim.tpot_s)
