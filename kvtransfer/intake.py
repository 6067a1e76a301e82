"""Embeddings on their way in: places for all items of a request first, then the missing ones.

    entry READY                   use it; the promise, if any, is consumed in the background
    no promise, in no tier        said to be absent: its KV may be cached instead
    entry new, or without writer  fill it from a lower tier, or fetch the promise into it
    entry PENDING                 somebody fetches or encodes the same picture: wait for that, and
                                  fetch our own promise if it gives up
    promise made by ourselves     our own encoder fills the entry: wait for the promise, no copy

Runs on one event loop. Does not know pictures, models or who will read the rows.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from kvtransfer.fetching import Fetching
from triptych.cache.embeddings import EmbeddingCache, Entry, EntryState
from triptych.core.census import Holding
from triptych.core.clock import Clock
from triptych.core.errors import DeadlineExceeded, RequestError, TransferError, TriptychError
from triptych.core.handoff import PromisedItem, TransferRef
from triptych.core.ids import ContentHash, InstanceId
from triptych.core.ports import Below, BlockMemory

log = logging.getLogger(__name__)

Ready = Callable[[int, Entry | None], None]
"""Index of an item, and its entry; None: nothing was promised and nothing is cached in any tier."""


class Intake:
    """Brings the promised embeddings of language jobs into the instance's embedding cache."""

    def __init__(
        self,
        cache: EmbeddingCache,
        memory: BlockMemory,
        receiver: Fetching,
        instance: InstanceId,
        clock: Clock,
        below: Below | None = None,
    ) -> None:
        self._below = below
        self._cache = cache
        self._memory = memory
        self._receiver = receiver
        self._instance = instance
        self._clock = clock
        self._turn = asyncio.Lock()
        """Fair: the request that came first gets the next room, so that none starves."""
        self._room = asyncio.Event()
        self._consuming: set[asyncio.Task[None]] = set()
        self.num_waiting = 0
        """Requests that wait for room. Others should not take single places meanwhile."""
        cache.watch_room(self._room.set)

    async def bring(
        self,
        items: Sequence[PromisedItem],
        deadline_s: float,
        on_places: Callable[[], None],
        on_ready: Ready,
        owner: str,
    ) -> None:
        """Return when every item's entry is READY or said to be absent, having called
        ``on_places()`` when all that come have places, and then ``on_ready(index, entry)`` for
        each item as it became so. Without items nothing is called.

        The hold on an entry passes to the caller with ``on_ready``: it must ``release`` it, also
        if this raises afterwards. Holds that were not passed on are released here. ``deadline_s``
        is a point of the clock. Raises RequestError if the items can never fit, TransferError,
        InstanceLost, DeadlineExceeded, Cancelled or what a producer failed with.
        """
        if not items:
            return
        wanted = {one.item.key: one.item.num_tokens for one in items if one.ref is not None}
        if not self._cache.fits(*wanted.values()):
            raise RequestError("the pictures do not fit into the embedding cache together")
        entries = await self._reserve(items, deadline_s, owner)
        for index, entry in entries.items():
            if self._is_own(items[index].ref) and entry.is_new:
                self._cache.entrust(entry)  # to the own encoder, which may be there before us
        kept = dict(entries)
        on_places()

        async def bring_one(index: int) -> None:
            if (ref := items[index].ref) is not None:
                await self._make_ready(ref, kept[index], deadline_s)
            elif not await self._is_found(kept[index], deadline_s):
                self._cache.release(kept.pop(index))
                on_ready(index, None)
                return
            on_ready(index, kept.pop(index))

        for index in range(len(items)):
            if index not in entries:
                on_ready(index, None)

        tasks = [asyncio.create_task(bring_one(index)) for index in kept]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            try:
                await _all_settled(tasks)
            finally:
                for entry in kept.values():
                    if entry.is_new:  # its fetch is over: whoever waits for the entry may write it
                        self._cache.entrust(entry)
                    self._cache.release(entry)

    def census(self) -> list[Holding]:
        """Promises that are consumed in the background."""
        return [Holding("task", "intake", len(self._consuming))] if self._consuming else []

    async def close(self) -> None:
        """End what runs in the background."""
        tasks = list(self._consuming)
        for task in tasks:
            task.cancel()
        await _all_settled(tasks)

    async def _reserve(
        self, items: Sequence[PromisedItem], deadline_s: float, owner: str
    ) -> dict[int, Entry]:
        """Entries by index of the items that are promised or cached, all at once. Nothing is held
        while room is waited for, not even what is cached."""
        self.num_waiting += 1
        try:
            async with _until(deadline_s, self._clock), self._turn:
                while True:
                    self._room.clear()
                    wanted = self._wanted(items)
                    entries = self._cache.reserve_all(list(wanted.values()), owner)
                    if entries is not None:
                        return dict(zip(wanted, entries, strict=True))
                    await self._room.wait()
        except TimeoutError:
            raise DeadlineExceeded("no room for the pictures in time") from None
        finally:
            self.num_waiting -= 1

    def _wanted(self, items: Sequence[PromisedItem]) -> dict[int, tuple[ContentHash, int]]:
        """Key and rows of what may come, by index: what is promised, cached, or in a tier and does
        not make the rest too large."""
        every = {index: (one.item.key, one.item.num_tokens) for index, one in enumerate(items)}
        sure = {
            index: wanted
            for index, wanted in every.items()
            if items[index].ref is not None or self._cache.has(wanted[0])
        }
        both = {
            index: wanted
            for index, wanted in every.items()
            if index in sure or self._is_below(wanted[0])
        }
        return both if self._cache.fits(*dict(both.values()).values()) else sure

    def _is_below(self, key: ContentHash) -> bool:
        return self._below is not None and self._below.covered([key]) == 1

    async def _recall(self, entry: Entry) -> bool:
        """Fill a new entry from a lower tier. Whether that was done; its rows are anything else."""
        return self._below is not None and await self._below.fill([(entry.key, entry.blocks)]) == 1

    def _is_own(self, ref: TransferRef | None) -> bool:
        return ref is not None and ref.instance == self._instance

    async def _is_found(self, entry: Entry, deadline_s: float) -> bool:
        """Whether an entry that nobody promised us is READY in the end: it was, a tier has it, or
        others bring it."""
        while not entry.is_ready and not self._cache.claim(entry):
            try:
                await self._watch(entry, deadline_s)
            except TransferError:
                return False
        if entry.is_new:
            if not await self._recall(entry):
                self._cache.entrust(entry)
                return False
            self._cache.commit(entry)
        return True

    async def _make_ready(self, ref: TransferRef, entry: Entry, deadline_s: float) -> None:
        if self._is_own(ref) and not entry.is_ready:
            await self._fetch(ref, (), deadline_s)
        else:
            while not entry.is_ready and not self._cache.claim(entry):
                await self._watch(entry, deadline_s)
            if entry.is_new and await self._recall(entry):
                self._cache.commit(entry)
                self._consume(ref, deadline_s)
            elif entry.is_new:
                await self._fetch(ref, entry.blocks, deadline_s)
                self._memory.absorb(entry.blocks)
                self._cache.commit(entry)
            else:
                self._consume(ref, deadline_s)
        if not entry.is_ready:
            raise TransferError("a promised embedding was not made")

    async def _fetch(self, ref: TransferRef, blocks: Sequence[int], deadline_s: float) -> None:
        await self._receiver.fetch(ref, self._memory, blocks, 0, None, deadline_s)

    async def _watch(self, entry: Entry, deadline_s: float) -> None:
        """Wait until the entry is written, or nobody writes it any more."""
        done = asyncio.Event()
        entry.watch(lambda _: done.set())
        try:
            async with _until(deadline_s, self._clock):
                await done.wait()
        except TimeoutError:
            raise DeadlineExceeded("an embedding was not there in time") from None
        if entry.state is EntryState.FAILED:
            raise TransferError("the same picture was not encoded for another request")

    def _consume(self, ref: TransferRef, deadline_s: float) -> None:
        """Take a promise whose bytes are not needed, so that its producer need not keep them."""
        task = asyncio.create_task(_quietly(self._fetch(ref, (), deadline_s)))
        self._consuming.add(task)
        task.add_done_callback(self._consuming.discard)


def _until(deadline_s: float, clock: Clock) -> asyncio.Timeout:
    return asyncio.timeout(max(0.0, deadline_s - clock.now()))


async def _quietly(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except TriptychError as error:
        log.debug("a promise that was not needed: %s", error)


async def _all_settled(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Wait until the tasks are over, their errors seen, however often we are cancelled."""
    is_cancelled = False
    while any(not task.done() for task in tasks):
        try:
            await asyncio.wait(tasks)
        except asyncio.CancelledError:
            is_cancelled = True
    for task in tasks:
        if not task.cancelled():
            task.exception()
    if is_cancelled:
        raise asyncio.CancelledError
