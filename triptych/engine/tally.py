"""What the steps of one engine contained, summed, for those who fit cost models to it.

A job's share is the difference of two moments, so that no job costs more to account than another.
"""

from triptych.core.event import Steps
from triptych.core.plan import LanguagePlan, VisionPlan


class Tally:
    """Sums over all steps of an engine since its start."""

    def __init__(self) -> None:
        self.now = Steps()
        """Up to the step executed last."""

    def add_language(
        self, plan: LanguagePlan, seconds: float, count: int = 1, behind: int = 0
    ) -> None:
        """A step of a language engine was executed, or, if it only decodes, ``count`` in a row,
        ``behind`` others of the same plan."""
        tokens = pairs = decodes = context = 0
        for segment in plan.segments:
            length = len(segment.tokens)
            if length == 1 and segment.draw is not None:
                decodes += 1
                context += segment.start + behind
            else:
                tokens += length
                pairs += segment.start * length + length * (length + 1) // 2
        context = count * context + decodes * count * (count - 1) // 2
        self._add(Steps(count, seconds, tokens, pairs, count * decodes, context))

    def add_vision(self, plan: VisionPlan, seconds: float) -> None:
        """A step of a vision engine was executed."""
        sizes = [task.item.num_tokens for task in plan.tasks]
        self._add(Steps(1, seconds, sum(sizes), sum(size * size for size in sizes)))

    def _add(self, step: Steps) -> None:
        now = self.now
        self.now = Steps(
            now.count + step.count,
            now.seconds + step.seconds,
            now.tokens + step.tokens,
            now.pairs + step.pairs,
            now.decodes + step.decodes,
            now.context + step.context,
        )
