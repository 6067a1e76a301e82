"""The sequences of one language engine by phase, and how each of them ends.

Knows who waits, who runs, who is over and still held, and what was not told yet. Decides nothing.
"""

import math
from bisect import insort
from collections.abc import Collection
from operator import attrgetter

from triptych.cache.kv import KvCache
from triptych.core.errors import InvariantBroken
from triptych.core.ids import JobId
from triptych.engine.outcome import Dropped, Ended, Outcome
from triptych.engine.policies import Beside
from triptych.engine.sequence import Phase, Sequence

_arrival = attrgetter("arrival")


class Roster:
    """All sequences that an engine knows. ``waiting`` and ``running`` are in order of arrival."""

    def __init__(self, cache: KvCache) -> None:
        self._cache = cache
        self.known: dict[JobId, Sequence] = {}
        self.waiting: list[Sequence] = []
        """Phase WAITING."""
        self.running: list[Sequence] = []
        """Phases ARRIVING and RUNNING."""
        self.outcomes: list[Outcome] = []
        """Not told yet."""
        self._foremost = 0
        """Arrival of the one that was put first last; smaller than that of any that came."""

    def alive(self) -> list[Sequence]:
        """Sequences that are not over."""
        return [*self.waiting, *self.running]

    def has_news(self, computed: Collection[JobId], *, is_full: bool) -> bool:
        """Whether anybody may be admitted, unless it ``is_full``, or has to end, or waits and was
        not told of, or could be computed beside those that are."""
        if self.outcomes or (self.waiting and not is_full):
            return True
        if any(not one.is_foreseen and not one.receives for one in self.waiting):
            return True
        return any(
            one.ending is not None
            or one.finished is not None
            or (one.phase is Phase.RUNNING and one.id not in computed)
            for one in self.running
        )

    def beside(self) -> Beside:
        """What these sequences are to others on the same device."""
        running = [one for one in self.running if one.phase is Phase.RUNNING]
        decodes = [one for one in running if one.pending == 1]
        ready = [one for one in running if one.pending > 1 and next(one.ready(1), None)]
        return Beside(
            len(decodes),
            sum(one.computed for one in decodes),
            min((one.claim.tpot_s for one in decodes), default=math.inf),
            len(ready),
        )

    def get_alive(self, job_id: JobId) -> Sequence | None:
        """The sequence of that job unless it is over."""
        sequence = self.known.get(job_id)
        return None if sequence is None or sequence.phase is Phase.HELD else sequence

    def add(self, sequence: Sequence) -> None:
        """A new sequence, behind all others."""
        self.known[sequence.id] = sequence
        self.waiting.append(sequence)

    def start(self, sequence: Sequence) -> None:
        """A waiting sequence has its blocks now."""
        place = self.waiting.index(sequence)
        for older in self.waiting[:place]:
            older.num_overtaken += 1
        del self.waiting[place]
        is_arriving = sequence.receives or sequence.awaited
        sequence.phase = Phase.ARRIVING if is_arriving else Phase.RUNNING
        insort(self.running, sequence, key=_arrival)

    def put_first(self, sequence: Sequence) -> None:
        """A waiting sequence goes before all others, whatever the policy."""
        self._foremost -= 1
        sequence.arrival = self._foremost
        self.waiting.remove(sequence)
        self.waiting.insert(0, sequence)

    def put_back(self, sequence: Sequence) -> None:
        """A running sequence gives its blocks back and waits again, in its old place."""
        self._cache.release(sequence.table)
        self.running.remove(sequence)
        sequence.computed, sequence.awaited, sequence.phase = 0, 0, Phase.WAITING
        insort(self.waiting, sequence, key=_arrival)

    def end(self, sequence: Sequence, reason: str) -> None:
        """The sequence is done."""
        self.outcomes.append(Ended(sequence.id, reason, sequence.timing()))
        self._let_go(sequence)

    def drop(self, sequence: Sequence, code: str, detail: str) -> None:
        """The sequence is over without its result."""
        self.outcomes.append(Dropped(sequence.id, code, detail))
        self._let_go(sequence)

    def forget(self, sequence: Sequence) -> None:
        """Free the blocks; the job is not known any more."""
        self._cache.release(sequence.table)
        del self.known[sequence.id]
        if sequence.phase is Phase.WAITING:
            self.waiting.remove(sequence)
        elif sequence.phase is not Phase.HELD:
            self.running.remove(sequence)
        sequence.phase = Phase.OVER

    def check(self) -> None:
        """Raise InvariantBroken unless the phases and the lists agree."""
        phases = {sequence.id: sequence.phase for sequence in self.known.values()}
        for sequence in self.waiting:
            if phases.pop(sequence.id, None) is not Phase.WAITING or sequence.table.is_open:
                raise InvariantBroken(f"{sequence.id} waits and is not WAITING")
        for sequence in self.running:
            if phases.pop(sequence.id, None) not in (Phase.ARRIVING, Phase.RUNNING):
                raise InvariantBroken(f"{sequence.id} runs and is not RUNNING")
            if sequence.computed > min(sequence.total, sequence.table.capacity):
                raise InvariantBroken(f"{sequence.id} has computed what it has no room for")
        if any(phase is not Phase.HELD for phase in phases.values()):
            raise InvariantBroken("a sequence is in no list")
        for group in (self.waiting, self.running):
            if group != sorted(group, key=_arrival):
                raise InvariantBroken("sequences are not in order of arrival")

    def _let_go(self, sequence: Sequence) -> None:
        """Blocks that somebody outside may touch stay until ``forget``."""
        if sequence.is_shared_outside:
            self.running.remove(sequence)
            sequence.phase = Phase.HELD
        else:
            self.forget(sequence)
