"""Moves entries between a block store and its tiers in the background.

    cache.stored    -> queued, then copied to the host by the mover's thread; a full queue drops
    cache.evicted   -> a copy under way is waited for; one that was not begun is made on the spot
    waiting prompt  -> what the disk has of it is read into the host (prefetch)
    host too full   -> what is nowhere else is written to the disk in time (demotion)
    fill            -> entries into blocks of a sequence or a picture, by threads of their own

Never a torn copy: a block is read only while the cache holds it for that key, and ``evicted``
returns only when nobody reads it. Implements ``cache.watch.Watcher``; its methods belong to the
thread of one event loop.
"""

import asyncio
import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from triptych.cache.watch import TierWatchers
from triptych.core.catalog import Tier
from triptych.core.census import Holding
from triptych.core.clock import Clock
from triptych.core.ids import BlockId, ContentHash
from triptych.offload.tiers import Tiers

log = logging.getLogger(__name__)

MAX_QUEUED = 1024
"""Entries that wait to be copied to the host; more are dropped until the cache evicts them."""
MAX_FORESEEN = 1024
"""Entries that wait to be read from the disk for prompts that wait."""
FILLERS = 4
"""Entries read from tiers at a time."""
SAVE_S = 2.0
"""How long a stop goes on writing what is only in memory to the disk."""

Entry = tuple[ContentHash, Sequence[BlockId]]


class Mover:
    """One store's tiers, and a thread that keeps them useful."""

    def __init__(
        self, name: str, tiers: Tiers, clock: Clock, watchers: TierWatchers | None = None
    ) -> None:
        """``name`` stands before its sizes in the census."""
        self._name = name
        self._tiers = tiers
        self._clock = clock
        self.watchers = watchers or TierWatchers()
        self._lock = tiers.lock
        self._queue: dict[ContentHash, Sequence[BlockId]] = {}
        self._foreseen: deque[ContentHash] = deque()
        self._copying: ContentHash | None = None
        self._may_demote = True
        self._is_closed = False
        self._num_filling = 0
        words = ("copied", "dropped", "prefetched", "demoted", "filled", "failed")
        self._counts = dict.fromkeys(words, 0)
        self._fillers = ThreadPoolExecutor(FILLERS, f"{name} filler")
        self._thread = threading.Thread(target=self._run, name=f"{name} mover", daemon=True)
        self._thread.start()

    # -- the event loop

    def stored(self, key: ContentHash, blocks: tuple[BlockId, ...]) -> None:
        """See ``cache.watch.Watcher``: copy the entry soon, unless a tier has it already."""
        with self._lock:
            self._tiers.index.lift(key)
            if self._is_closed or self._tiers.index.find(key) is not None:
                return
            if len(self._queue) < MAX_QUEUED:
                self._queue[key] = blocks
                self._lock.notify_all()
            else:
                self._counts["dropped"] += 1

    def evicted(self, key: ContentHash, blocks: tuple[BlockId, ...]) -> None:
        """See ``cache.watch.Watcher``: returns when nobody reads the blocks; the entry is in the
        host by then if there was any room."""
        with self._lock:
            while self._copying == key:
                self._lock.wait()
            self._queue.pop(key, None)
            self._tiers.index.sink(key)
            self._may_demote = True
            self._lock.notify_all()
            if self._is_closed or self._tiers.index.has(Tier.HOST, key):
                return
        self._count("copied" if self._tiers.put(key, blocks) else "dropped")

    def covered(self, keys: Sequence[ContentHash]) -> int:
        """How many leading ``keys`` could be filled now. Pure."""
        with self._lock:
            return self._tiers.index.covered(keys)

    def foresee(self, keys: Sequence[ContentHash]) -> None:
        """``fill`` will be asked for these soon: bring what the disk has to the host."""
        with self._lock:
            index = self._tiers.index
            wanted = [key for key in keys if index.find(key) is Tier.DISK]
            room = MAX_FORESEEN - len(self._foreseen)
            self._foreseen.extend(wanted[: max(0, room)])
            self._lock.notify_all()

    async def fill(self, entries: Sequence[Entry]) -> int:
        """Fill the blocks of each ``(key, blocks)`` in turn, up to the first that cannot be had;
        how many were. When this has returned or was cancelled, nobody writes to the blocks."""
        stop = threading.Event()
        with self._lock:
            if self._is_closed:
                return 0
            self._num_filling += 1
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(self._fillers, self._fill, entries, stop)
        try:
            await asyncio.wait([work])
        except asyncio.CancelledError:
            stop.set()
            while not work.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([work])
            work.exception()
            raise
        finally:
            with self._lock:
                self._num_filling -= 1
        return work.result()

    def census(self) -> tuple[list[Holding], dict[str, int]]:
        """Fills under way, slots by tier, and what was done since the start."""
        with self._lock:
            filling = [Holding("fill", self._name, self._num_filling)] if self._num_filling else []
            totals = self._tiers.index.totals(self._name)
            counts = {f"{self._name}_tiers.{word}": n for word, n in self._counts.items()}
            counts[f"{self._name}_tiers.lost"] = self._tiers.index.num_lost
            counts[f"{self._name}_tiers.damaged"] = self._tiers.num_damaged
        return filling, totals | counts

    def keys(self, tier: Tier) -> list[ContentHash]:
        """What can be had from ``tier`` now, for a snapshot."""
        with self._lock:
            return list(self._tiers.index.keys(tier))

    def check(self) -> None:
        """Raise InvariantBroken unless slots and entries are in order."""
        with self._lock:
            self._tiers.index.check()

    async def close(self) -> None:
        """Save to the disk what a short time allows, end the threads, give everything back."""
        with self._lock:
            self._is_closed = True
        await asyncio.to_thread(self.end)

    def end(self) -> None:
        """The same, for a caller that is no event loop's thread."""
        with self._lock:
            self._is_closed = True
            self._queue.clear()
            self._lock.notify_all()
        self._thread.join()
        self._fillers.shutdown()
        until_s = self._clock.now() + SAVE_S
        for _ in self._tiers.save():
            if self._clock.now() >= until_s:
                break
        self._tiers.close()

    # -- threads

    def _run(self) -> None:
        while True:
            with self._lock:
                while not (self._is_closed or self._queue or self._foreseen or self._may_demote):
                    self._lock.wait()
                if self._is_closed:
                    return
                self._may_demote = False
            for work in (self._prefetch_one, self._copy_one, self._demote_one):
                try:
                    work()
                except Exception:  # costs one entry, not the tiers of this instance
                    log.exception("an entry was not moved between tiers")
                    self._count("failed")

    def _copy_one(self) -> None:
        with self._lock:
            if not self._queue:
                return
            key = next(iter(self._queue))
            blocks = self._queue.pop(key)
            self._copying = key
        try:
            is_copied = self._tiers.put(key, blocks, is_on_device=True)
            self._count("copied" if is_copied else "dropped")
        finally:
            with self._lock:
                self._copying = None
                self._lock.notify_all()

    def _prefetch_one(self) -> None:
        with self._lock:
            key = self._foreseen.popleft() if self._foreseen else None
        if key is not None and self._tiers.promote(key):
            self._count("prefetched")

    def _demote_one(self) -> None:
        if self._tiers.demote():
            self._count("demoted")
            self._may_demote = True

    def _fill(self, entries: Sequence[Entry], stop: threading.Event) -> int:
        filled: list[BlockId] = []
        count = 0
        for key, blocks in entries:
            if stop.is_set() or not self._tiers.fill(key, blocks):
                break
            filled.extend(blocks)
            count += 1
        self._tiers.memory.absorb(filled)
        self._count("filled", count)
        return count

    def _count(self, word: str, number: int = 1) -> None:
        with self._lock:
            self._counts[word] += number


def relay(watchers: TierWatchers, call_soon: Callable[..., object]) -> Callable[..., None]:
    """An index's ``on_change`` that tells ``watchers`` on the event loop, in order."""

    def changed(tier: Tier, key: ContentHash, is_stored: bool) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to hear
            call_soon(watchers.changed, tier, key, is_stored)

    return changed
