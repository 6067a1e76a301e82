"""What is being executed: one step, or a run of them that is told step by step.

Sequences that come to their end meanwhile keep their blocks until the executor has let go of them.
Knows sequences and sums; decides nothing.
"""

from triptych.cache.kv import KvCache
from triptych.core.plan import LanguagePlan
from triptych.engine.roster import Roster
from triptych.engine.sequence import Sequence
from triptych.engine.step import Step
from triptych.engine.tally import Tally


class Flight:
    """The step in flight, if there is one."""

    def __init__(self, roster: Roster, cache: KvCache) -> None:
        self._roster = roster
        self._cache = cache
        self._tally = Tally()
        self.step: Step[LanguagePlan] | None = None
        self.num_told = 0
        """Steps of the run that are over."""

    def begin(self, step: Step[LanguagePlan] | None) -> None:
        """``step`` goes to the executor."""
        self.step, self.num_told = step, 0

    def account(self, step: Step[LanguagePlan], seconds: float, count: int) -> None:
        """``count`` steps were executed, before what was drawn is known."""
        before = self._tally.now
        self._tally.add_language(step.plan, seconds, count, self.num_told)
        for sequence in self._sequences(step):
            if sequence.finished is None:
                sequence.note_computed(seconds, before, self._tally.now)

    def land(self, step: Step[LanguagePlan]) -> list[Sequence]:
        """It is over, and its blocks are written no more. Its sequences, in its order. Blocks that
        a run was to fill and did not are free again: it may have been ended for who needs them."""
        self.step = None
        sequences = self._sequences(step)
        for sequence in sequences:
            sequence.table.is_writing = False
            if step.is_run:
                self._cache.shrink(sequence.table, sequence.total)
        return sequences

    def end_those_over(self, sequences: list[Sequence]) -> None:
        """What had to wait for ``land``."""
        for sequence in sequences:
            if sequence.ending is not None:
                self._roster.drop(sequence, *sequence.ending)
            elif sequence.finished is not None:
                self._roster.end(sequence, sequence.finished)

    def _sequences(self, step: Step[LanguagePlan]) -> list[Sequence]:
        ids = dict.fromkeys(segment.job for segment in step.plan.segments)
        return [self._roster.known[job_id] for job_id in ids]
