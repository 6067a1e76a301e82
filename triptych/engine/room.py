"""Room for sequences: growth of those that run, preemption when it runs out, admission.

Knows blocks by number and policies by protocol. Does not know steps or tokens' values.
"""

from collections.abc import Callable
from heapq import nsmallest
from operator import attrgetter

from triptych.cache.kv import KvCache, KvTable
from triptych.core.config import EngineConfig
from triptych.core.handoff import LanguageJob
from triptych.engine.outcome import Reserved
from triptych.engine.policies import Moment, Policies, Work
from triptych.engine.roster import Roster
from triptych.engine.sequence import Phase, Sequence

REMATCHED = 8
"""Waiting sequences that are looked up in the tree again in one step: what waits costs little."""

Elsewhere = Callable[[LanguageJob, KvTable], int]
"""How many leading tokens of a sequence, full blocks, could be brought from a lower tier or from
another instance. Asked when the sequence was given its blocks and ``table.hit_tokens`` is known."""


def nowhere(_job: LanguageJob, _table: KvTable) -> int:
    """No KV is anywhere but in the tree."""
    return 0


Foresee = Callable[[LanguageJob, KvTable], None]
"""Hears of a sequence that waits for its turn: ``Elsewhere`` will be asked about it."""


def nobody(_job: LanguageJob, _table: KvTable) -> None:
    """Nothing is made ready."""


class Room:
    """Gives blocks to the sequences of a roster, the oldest first."""

    def __init__(
        self,
        config: EngineConfig,
        cache: KvCache,
        policies: Policies,
        roster: Roster,
        *,
        recomputes_items: bool,
        elsewhere: Elsewhere = nowhere,
    ) -> None:
        self._config = config
        self._cache = cache
        self._policies = policies
        self._roster = roster
        self._recomputes_items = recomputes_items
        self._elsewhere = elsewhere
        self.foresee: Foresee = nobody
        self.num_preempted = 0
        """Since the start."""
        self._turn = 0

    def grow(self) -> bool:
        """Room for every known token of every running sequence, preempting others for it.

        Returns:
            Whether all have room and nobody was preempted. A sequence without room waits: older
            ones, or those that somebody outside holds, come to their end without it.
        """
        before, is_short = self.num_preempted, False
        for sequence in list(self._roster.running):
            while sequence.phase is Phase.RUNNING and not self._grow_one(sequence):
                if not self._preempt_for(sequence):
                    is_short = True
                    break
        return not is_short and self.num_preempted == before

    def admit(self, now: float) -> bool:
        """Waiting sequences with places for their pictures in the policy's order, all or nothing
        each; nobody overtakes one that does not fit yet. A block is left for each running sequence
        that grows, lest it be preempted at once.

        Returns:
            Whether one does not fit yet.
        """
        roster = self._roster
        places = self._config.max_sequences - len(roster.running)
        waiting = [sequence for sequence in roster.waiting if sequence.has_places]
        if not waiting or places <= 0:
            return False
        self._match(waiting)
        moment = Moment(now, self._turn)
        order = list(self._policies.order([_debt(sequence) for sequence in waiting], moment))
        first = order[0]
        order.sort(key=lambda index: not waiting[index].is_preferred)
        spare = sum(map(_grows, roster.running))
        for index in order[:places]:
            sequence = waiting[index]
            if not self._open(sequence, spare):
                if self._cache.num_open == 0:
                    roster.drop(sequence, "internal", "a sequence alone does not fit")
                return bool(roster.waiting)
            roster.start(sequence)
            self._turn += index == first
            spare += _grows(sequence)
            if sequence.receives:
                sequence.note_started(now)
            sequence.note_waiting(now)
        return False

    def look_ahead(self) -> None:
        """Tell of the sequences that were not admitted, each once."""
        for sequence in self._roster.waiting:
            if not sequence.is_foreseen and not sequence.receives:
                sequence.is_foreseen = True
                self.foresee(sequence.job, sequence.table)

    def _match(self, waiting: list[Sequence]) -> None:
        """Note what the tree holds of each, if the order asks: of all that were never looked up,
        and of a few whose note is the oldest and may be wrong by now."""
        if not self._policies.matches or len(waiting) == 1:
            return
        version = self._cache.version
        unknown = [sequence for sequence in waiting if sequence.matched < 0]
        stale = [sequence for sequence in waiting if 0 <= sequence.matched < version]
        for sequence in unknown + nsmallest(REMATCHED, stale, key=attrgetter("matched")):
            sequence.hit = self._cache.match(sequence.table, *self._bounds(sequence))
            sequence.matched = version

    def _grow_one(self, sequence: Sequence) -> bool:
        return self._cache.grow(sequence.table, sequence.total)

    def _preempt_for(self, wanting: Sequence) -> bool:
        """Whether somebody gave blocks back. ``wanting`` is over if nobody else has any."""
        if self._cache.num_open == 1:
            self._roster.drop(wanting, "internal", "a sequence alone does not fit")
            return False
        running = [
            sequence
            for sequence in self._roster.running
            if sequence is not wanting and not sequence.is_shared_outside
        ]
        victims = [_debt(sequence) for sequence in running]
        index = self._policies.preemption(_debt(wanting), victims)
        if index is None:
            return False
        self.num_preempted += 1
        if self._can_recompute(running[index]):
            self._roster.put_back(running[index])
        else:
            self._roster.drop(running[index], "preempted", "no blocks are left")
        return True

    def _can_recompute(self, sequence: Sequence) -> bool:
        """Whether everything that the KV is made of is here."""
        has_embeddings = self._recomputes_items and sequence.job.kv is None
        return has_embeddings or not sequence.job.prompt.items

    def _bounds(self, sequence: Sequence) -> tuple[int, int]:
        """Most tokens that may come from the tree, and what their number is a multiple of.

        The last token is computed here, whatever is cached, unless its KV comes from elsewhere. In
        deterministic mode a hit ends at a multiple of the chunk within the prompt: there, and not
        at the border of an item, every sequence with this beginning has ended a chunk.
        """
        limit = sequence.total if sequence.receives else sequence.total - 1
        if self._config.deterministic:
            return min(limit, sequence.prompt_len), self._config.chunk_tokens
        return limit, 1

    def usable(self, sequence: Sequence, num_tokens: int) -> int:
        """How many of the first ``num_tokens``, whose KV came from elsewhere, may be built on."""
        _, align = self._bounds(sequence)
        return num_tokens // align * align

    def _open(self, sequence: Sequence, spare: int) -> bool:
        """Blocks for all known tokens, and for the one that comes behind KV from elsewhere."""
        limit, align = self._bounds(sequence)
        num_tokens = min(sequence.total + sequence.receives, sequence.peak_tokens)
        table = sequence.table
        if not self._cache.open(table, num_tokens, limit=limit, align=align, spare=spare):
            return False
        sequence.computed = table.hit_tokens
        if sequence.cached_tokens is None:
            sequence.cached_tokens = table.hit_tokens
        if not sequence.receives:
            found = min(self._elsewhere(sequence.job, table), limit) // table.block_size
            found = found * table.block_size // align * align
            sequence.awaited = found if found > table.hit_tokens else 0
        reserved = Reserved(sequence.id, table.blocks, table.hit_tokens, sequence.awaited)
        self._roster.outcomes.append(reserved)
        return True


def _grows(sequence: Sequence) -> bool:
    return sequence.job.publish is None


def _debt(sequence: Sequence) -> Work:
    return sequence.work(sequence.computed, sequence.total)
