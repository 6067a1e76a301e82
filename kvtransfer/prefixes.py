"""KV of prompts that need not be computed: where it could come from, and how it is brought.

A sequence is asked about when it is given its blocks (``LanguageEngine(elsewhere=...)``), every
source in turn; who has the longest prefix brings it. Whatever goes wrong on the way costs the
prefix and never the answer. Runs on one event loop. Does not know tiers or instances.
"""

import logging
from collections.abc import Sequence
from typing import Protocol

from triptych.cache.kv import KvTable
from triptych.core.errors import TriptychError
from triptych.core.handoff import LanguageJob
from triptych.core.ids import BlockId, JobId

log = logging.getLogger(__name__)


class Found(Protocol):
    """A prefix that a source could bring for one sequence."""

    @property
    def num_tokens(self) -> int:
        """Leading tokens, full blocks."""
        ...

    async def bring(self, blocks: Sequence[BlockId], first: int, deadline_s: float) -> int:
        """Fill ``blocks[first:]``, the blocks of the leading tokens; those before are there.

        How many of ``blocks`` are right afterwards, verified, at least ``first``. When it has
        returned or raised, by whatever cause, nobody writes to them any more. ``deadline_s`` is a
        point of the clock."""
        ...


class Source(Protocol):
    """Something that may hold KV of prompts."""

    def find(self, job: LanguageJob, table: KvTable) -> Found | None:
        """What it could bring of a sequence beyond ``table.hit_tokens``. Quick and pure; what was
        found may be gone when it is to be brought."""
        ...

    def foresee(self, job: LanguageJob, table: KvTable) -> None:
        """A sequence waits for its turn: what ``find`` will be asked for may be made ready."""
        ...


class Prefixes:
    """The sources of one instance, the nearest first: of equal prefixes it is preferred."""

    def __init__(self, sources: Sequence[Source], block_size: int) -> None:
        self._sources = sources
        self._block_size = block_size
        self._found: dict[JobId, Found] = {}

    def elsewhere(self, job: LanguageJob, table: KvTable) -> int:
        """``engine.room.Elsewhere``: how many leading tokens could be brought."""
        self._found.pop(job.header.id, None)
        every = [source.find(job, table) for source in self._sources]
        found = [one for one in every if one is not None and one.num_tokens > table.hit_tokens]
        if not found:
            return 0
        best = self._found[job.header.id] = max(found, key=lambda one: one.num_tokens)
        return best.num_tokens

    def foresee(self, job: LanguageJob, table: KvTable) -> None:
        """The sequence waits for its turn."""
        for source in self._sources:
            source.foresee(job, table)

    def forget(self, job: JobId) -> None:
        """Nothing is awaited for the job after all."""
        self._found.pop(job, None)

    async def bring(
        self, job: JobId, blocks: Sequence[BlockId], hit: int, awaited: int, deadline_s: float
    ) -> int:
        """Bring tokens ``[hit, awaited)`` of a job into its ``blocks``; how many leading tokens
        are there now, at least ``hit``. When it has returned or was cancelled, nobody writes to
        the blocks any more."""
        found = self._found.pop(job, None)
        if found is None:
            return hit
        size = self._block_size
        try:
            count = await found.bring(blocks[: awaited // size], hit // size, deadline_s)
        except TriptychError as error:
            log.info("%s: a prefix was not brought: %s", job, error)
            return hit
        return count * size
