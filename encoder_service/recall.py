"""Embeddings that lie in a tier below the cache: brought back instead of being encoded again.

Knows keys and entries, not pictures. Where nothing can be brought, the picture is encoded.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from triptych.cache.embeddings import EmbeddingCache, Entry
from triptych.core.clock import Clock
from triptych.core.ports import Below
from triptych.core.request import Item


class Recall:
    """One encode instance's way to its tiers. ``must_wait``: see ``VisionEngine``."""

    def __init__(
        self,
        cache: EmbeddingCache,
        below: Below | None,
        clock: Clock,
        must_wait: Callable[[], bool] = lambda: False,
    ) -> None:
        self._cache = cache
        self._below = below
        self._clock = clock
        self._must_wait = must_wait
        self._room = asyncio.Event()

    def wake(self) -> None:
        """There may be room now, or nobody who must have it first."""
        self._room.set()

    @asynccontextmanager
    async def bring(self, item: Item, owner: str, deadline_s: float) -> AsyncIterator[bool]:
        """Whether the embedding of ``item`` is in the cache, or somebody writes it there; while
        the context lasts it stays. Waits for room, as long as a tier has it, up to ``deadline_s``
        of the clock."""
        entry = await self._reserve(item, owner, deadline_s)
        if entry is None:
            yield False
            return
        try:
            yield await self._is_written(entry)
        finally:
            if entry.is_new:  # whoever waits for it may write it
                self._cache.entrust(entry)
            self._cache.release(entry)

    async def _reserve(self, item: Item, owner: str, deadline_s: float) -> Entry | None:
        below, wanted = self._below, [(item.key, item.num_tokens)]
        if below is None or not self._cache.fits(item.num_tokens):
            return None
        try:
            async with asyncio.timeout(max(0.0, deadline_s - self._clock.now())):
                while below.covered([item.key]):
                    self._room.clear()
                    entry = self._cache.acquire(item.key, owner)  # takes no room from anybody
                    if entry is None and not self._must_wait():
                        reserved = self._cache.reserve_all(wanted, owner)
                        entry = reserved[0] if reserved else None
                    if entry is not None:
                        return entry
                    await self._room.wait()
        except TimeoutError:
            pass  # the engine says what becomes of jobs that are late
        return None

    async def _is_written(self, entry: Entry) -> bool:
        """Write the entry, unless it is written or being written by another."""
        if not self._cache.claim(entry):
            return True
        if self._below is None or not await self._below.fill([(entry.key, entry.blocks)]):
            return False
        self._cache.commit(entry)
        return True
