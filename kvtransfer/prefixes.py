"""KV of a prompt's beginning from elsewhere: who could bring how much, and bringing it.

Sources stand nearest first, and each goes on where the one before it ended. What none of them
brings is computed, so no failure here is anybody's error. Knows no engine.
"""

import logging
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from kvtransfer.fetching import Fetching
from triptych.cache.kv import KvTable
from triptych.core.clock import Clock
from triptych.core.errors import TriptychError
from triptych.core.handoff import LanguageJob, PromisedItem
from triptych.core.ids import BlockId, JobId
from triptych.core.ports import BlockMemory

log = logging.getLogger(__name__)


class Place(NamedTuple):
    """Where a prefix belongs: blocks of the sequence, and its tokens ``[start, end)``, full blocks
    of it, that are awaited."""

    blocks: Sequence[BlockId]
    start: int
    end: int


class PrefixSource(Protocol):
    """A lower tier, or another instance."""

    def num_tokens(self, job: LanguageJob, table: KvTable) -> int:
        """Leading tokens that could be brought, full blocks. Called on the loop; must not block."""
        ...

    def foresee(self, job: LanguageJob, table: KvTable) -> None:
        """The sequence waits for its turn: what ``num_tokens`` will be asked about may be made
        ready."""
        ...

    def forget(self, job: JobId) -> None:
        """The job is over: nothing will be brought for it any more."""
        ...

    async def bring(self, job: LanguageJob, place: Place, deadline_s: float) -> int:
        """Fill blocks behind ``place.start``; up to which token all KV is there and verified, at
        least ``place.start``. When this has returned or raised, nobody writes to the blocks."""
        ...


class Prefixes:
    """All sources of an instance, the nearest first."""

    def __init__(self, sources: Sequence[PrefixSource]) -> None:
        self._sources = sources

    def elsewhere(self, job: LanguageJob, table: KvTable) -> int:
        """See ``engine.room.Elsewhere``."""
        return max((source.num_tokens(job, table) for source in self._sources), default=0)

    def foresee(self, job: LanguageJob, table: KvTable) -> None:
        """See ``engine.room.Foresee``."""
        for source in self._sources:
            source.foresee(job, table)

    def forget(self, job: JobId) -> None:
        """The job is over."""
        for source in self._sources:
            source.forget(job)

    async def bring(self, job: LanguageJob, place: Place, deadline_s: float) -> int:
        """Fill as much of ``place`` as can be had; up to which token it is."""
        for source in self._sources:
            if place.start < place.end:
                place = place._replace(start=await source.bring(job, place, deadline_s))
        return place.start


class Lent:
    """The source of prefixes that other instances lend, as jobs say."""

    def __init__(
        self, receiver: Fetching, memory: BlockMemory, clock: Clock, patience_s: float
    ) -> None:
        """``patience_s`` bounds a fetch: recomputing is the other way."""
        self._receiver = receiver
        self._memory = memory
        self._clock = clock
        self._patience_s = patience_s

    def num_tokens(self, job: LanguageJob, _table: KvTable) -> int:
        """See ``PrefixSource``."""
        return 0 if job.prefix is None else job.prefix.num_tokens

    def foresee(self, _job: LanguageJob, _table: KvTable) -> None:
        """Nothing is made ready: what is lent is fetched when its blocks are there."""

    def forget(self, _job: JobId) -> None:
        """Nothing was noted."""

    async def bring(self, job: LanguageJob, place: Place, deadline_s: float) -> int:
        """See ``PrefixSource``."""
        ref, size = job.prefix, self._memory.layout.block_size
        if ref is None:
            return place.start
        end = min(place.end, ref.num_tokens) // size * size
        if end <= place.start:
            return place.start
        first = place.start // size
        wanted = place.blocks[first : end // size]
        until_s = min(deadline_s, self._clock.now() + self._patience_s)
        try:
            await self._receiver.fetch(ref, self._memory, wanted, first, None, until_s)
        except TriptychError as error:
            log.info("%s: the prefix is computed instead: %s", job.header.id, error)
            return place.start
        self._memory.absorb(wanted)
        return end


class Expected:
    """Items that nobody encodes for a job, and whether its cached KV or embeddings make up for
    that."""

    def __init__(self, items: Sequence[PromisedItem]) -> None:
        self._ends = {index: one.item.end for index, one in enumerate(items) if one.ref is None}
        self._absent: set[int] = set()
        self._sure = 0
        self._is_sure = False

    def is_absent(self, index: int) -> None:
        """The embedding of an item is not cached."""
        self._absent.add(index)

    def is_there(self, num_tokens: int) -> None:
        """The KV of the first ``num_tokens`` is there and nothing more is awaited."""
        self._sure, self._is_sure = num_tokens, True

    @property
    def is_stale(self) -> bool:
        """Whether an item will never come that has to be computed."""
        return self._is_sure and any(self._ends[index] > self._sure for index in self._absent)
