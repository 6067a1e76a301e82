"""Visual embeddings by content: entries of embedding blocks, computed or received once, read often.

Knows keys, blocks, who writes an entry and who reads it. Does not know pictures or transports.
An entry is a row range of the store for one key; an ``Entry`` is one user's hold on it.
"""

from collections.abc import Callable, Iterator, Sequence
from enum import Enum

from triptych.cache.eviction import Evictable, EvictionQueue, Order, Recompute, lru
from triptych.cache.pool import BlockPool
from triptych.cache.watch import Watchers
from triptych.core.census import Holding
from triptych.core.errors import InvariantBroken
from triptych.core.ids import BlockId, ContentHash


class EntryState(Enum):
    """Life of an entry. Nothing follows READY or FAILED."""

    PENDING = "pending"
    READY = "ready"
    FAILED = "failed"


class _Slot(Evictable):
    """An entry as the cache keeps it."""

    __slots__ = ("blocks", "holds", "key", "num_tokens", "state", "writer")

    def __init__(
        self, key: ContentHash, num_tokens: int, blocks: list[BlockId], cost: float
    ) -> None:
        super().__init__(cost)
        self.key = key
        self.num_tokens = num_tokens
        self.blocks = tuple(blocks)
        self.state = EntryState.PENDING
        self.holds: list[Entry] = []
        self.writer: Entry | None = None


class Entry:
    """One user's hold on an entry, from ``acquire`` or ``reserve_all`` until ``release``."""

    __slots__ = ("_slot", "_watchers", "owner")

    def __init__(self, slot: _Slot, owner: str) -> None:
        self._slot = slot
        self._watchers: list[Callable[[Entry], None]] = []
        self.owner = owner

    @property
    def key(self) -> ContentHash:
        """What the rows are the embedding of."""
        return self._slot.key

    @property
    def num_tokens(self) -> int:
        """Rows in use."""
        return self._slot.num_tokens

    @property
    def blocks(self) -> tuple[BlockId, ...]:
        """Blocks of the rows. Readable when READY, writable by the writer while PENDING."""
        return self._slot.blocks

    @property
    def state(self) -> EntryState:
        """What has become of it."""
        return self._slot.state

    @property
    def is_ready(self) -> bool:
        """Whether the rows may be read."""
        return self._slot.state is EntryState.READY

    @property
    def is_new(self) -> bool:
        """Whether this hold is the writer: it must ``commit``, ``abort`` or ``entrust``."""
        return self._slot.writer is self

    @property
    def is_unwritten(self) -> bool:
        """Whether it is PENDING and nobody is its writer."""
        return self._slot.state is EntryState.PENDING and self._slot.writer is None

    def watch(self, callback: Callable[["Entry"], None]) -> None:
        """Call ``callback(self)`` once when the entry is READY or FAILED, or its writer hands it
        on: now, if it is so already.

        A released hold hears nothing. Callbacks must not call the cache back.
        """
        if self._slot.state is EntryState.PENDING and self._slot.writer is not None:
            self._watchers.append(callback)
        else:
            callback(self)


class EmbeddingCache:
    """Embedding blocks by content key. READY entries that nobody holds stay until room is needed,
    and go in the order given. Tiers and the cluster's directory hear through ``watchers``."""

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        *,
        order: Order = lru,
        recompute: Recompute | None = None,
    ) -> None:
        self.block_size = block_size
        self._pool = BlockPool(num_blocks)
        self._slots: dict[ContentHash, _Slot] = {}
        self._idle: EvictionQueue[_Slot] = EvictionQueue(order)
        self._recompute = recompute or Recompute()
        self._num_idle = 0
        """Blocks of the entries in ``_idle``."""
        self._failed: list[_Slot] = []
        self._room_watchers: list[Callable[[], None]] = []
        self.watchers = Watchers()

    def watch_room(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` from now on whenever ``reserve_all`` or ``claim`` may succeed where it
        did not before. It must not call the cache back."""
        self._room_watchers.append(callback)

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold ``num_tokens`` rows."""
        return -(-num_tokens // self.block_size)

    def fits(self, *num_tokens: int) -> bool:
        """Whether entries of these sizes fit together when nothing else is held."""
        return sum(map(self.blocks_for, num_tokens)) <= self._pool.num_blocks

    def has(self, key: ContentHash) -> bool:
        """Whether the entry of ``key`` is READY. Pure."""
        slot = self._slots.get(key)
        return slot is not None and slot.state is EntryState.READY

    def acquire(self, key: ContentHash, owner: str = "") -> Entry | None:
        """A hold on the READY or PENDING entry of ``key``, if there is one."""
        slot = self._slots.get(key)
        return None if slot is None else self._hold(slot, owner)

    def reserve_all(
        self, items: Sequence[tuple[ContentHash, int]], owner: str = ""
    ) -> list[Entry] | None:
        """Holds on the entries of all ``(key, num_tokens)``, in order, or None and no change.

        Missing entries are made PENDING, and the returned hold (``is_new``) is their writer. Of
        equal keys in one call, the first hold writes.
        """
        known = (self._slots[key] for key, _ in items if key in self._slots)
        lengths = {slot.key: slot.num_tokens for slot in known}
        if any(lengths.setdefault(key, num_tokens) != num_tokens for key, num_tokens in items):
            raise InvariantBroken("embedding: one key with two lengths")
        wanted = dict(items)
        needed = sum(self.blocks_for(n) for key, n in wanted.items() if key not in self._slots)
        spare = self._num_idle - sum(
            len(slot.blocks)
            for key in wanted
            if (slot := self._slots.get(key)) is not None and slot in self._idle
        )
        if needed > self._pool.num_free + spare:
            return None
        held = [self.acquire(key, owner) for key, _ in items]  # first, so that none is evicted
        return [
            entry or self.acquire(key, owner) or self._make(key, num_tokens, owner)
            for entry, (key, num_tokens) in zip(held, items, strict=True)
        ]

    def commit(self, entry: Entry) -> None:
        """The writer has written all rows (and verified them): the entry is READY."""
        self._settle(entry, EntryState.READY)
        self.watchers.stored(entry.key, *entry.blocks)

    def abort(self, entry: Entry) -> None:
        """The writer gives up and writes no more: the entry is FAILED, and a later request for
        the key starts anew. Blocks are free when the last hold is released, this one included."""
        self._settle(entry, EntryState.FAILED)

    def entrust(self, entry: Entry) -> None:
        """Give up the writer's part without failing: whoever calls ``claim`` first writes."""
        self._check_writer(entry)
        entry._slot.writer = None
        self._tell(entry._slot)

    def claim(self, entry: Entry) -> bool:
        """Become the writer of a PENDING entry that has none. Whether this hold is it now."""
        if entry.is_unwritten:
            entry._slot.writer = entry
        return entry.is_new

    def release(self, entry: Entry) -> None:
        """End a hold. The writer's of a PENDING entry ends as if aborted."""
        slot = entry._slot
        if entry not in slot.holds:
            raise InvariantBroken("release: the hold has ended already")
        if entry.is_new:
            self.abort(entry)
        slot.holds.remove(entry)
        entry._watchers.clear()
        if slot.holds:
            return
        if slot.state is EntryState.READY:
            self._idle.use(slot)
            self._idle.put(slot)
            self._num_idle += len(slot.blocks)
        else:
            self._pool.drop(slot.blocks)
            if slot.state is EntryState.FAILED:
                self._failed.remove(slot)
            else:
                del self._slots[slot.key]  # entrusted to nobody
        for watcher in self._room_watchers:
            watcher()

    def holdings(self) -> list[Holding]:
        """Embedding blocks by owner; an entry with several holds counts for each."""
        counts: dict[str, int] = {}
        for slot in self._all():
            for entry in slot.holds:
                counts[entry.owner] = counts.get(entry.owner, 0) + len(slot.blocks)
        return [Holding("embedding_block", owner, count) for owner, count in counts.items()]

    def totals(self) -> dict[str, int]:
        """Sizes for the census; ``cached`` blocks are READY and held by nobody."""
        return {
            "embedding_block.total": self._pool.num_blocks,
            "embedding_block.free": self._pool.num_free,
            "embedding_block.cached": self._num_idle,
        }

    def check(self) -> None:
        """Raise InvariantBroken unless every block has one entry and idle entries are unheld."""
        self._pool.check()
        self._idle.check()
        used = [block for slot in self._all() for block in slot.blocks]
        if len(used) != len(set(used)) or len(used) + self._pool.num_free != self._pool.num_blocks:
            raise InvariantBroken("embedding: a block has no entry, or two")
        if sum(len(slot.blocks) for slot in self._idle) != self._num_idle:
            raise InvariantBroken("embedding: idle blocks are miscounted")
        if any(self._slots.get(slot.key) is not slot for slot in self._idle):
            raise InvariantBroken("embedding: an entry that is gone could be evicted")
        for slot in self._all():
            idle = slot in self._idle
            if idle != (not slot.holds) or (idle and slot.state is not EntryState.READY):
                raise InvariantBroken("embedding: held and idle entries are mixed up")
            if slot.writer is not None and slot.writer not in slot.holds:
                raise InvariantBroken("embedding: the writer has let go")

    def _all(self) -> Iterator[_Slot]:
        yield from self._slots.values()
        yield from self._failed

    def _hold(self, slot: _Slot, owner: str) -> Entry:
        if slot in self._idle:
            self._idle.discard(slot)
            self._num_idle -= len(slot.blocks)
        entry = Entry(slot, owner)
        slot.holds.append(entry)
        return entry

    def _make(self, key: ContentHash, num_tokens: int, owner: str) -> Entry:
        count = self.blocks_for(num_tokens)
        while self._pool.num_free < count:
            old = self._idle.pop()
            if old is None:
                raise InvariantBroken("embedding: fewer blocks than were counted")
            self._num_idle -= len(old.blocks)
            del self._slots[old.key]
            self.watchers.evicted(old.key, *old.blocks)
            self._pool.drop(old.blocks)
        cost = self._recompute.of_embedding(num_tokens, count * self.block_size)
        slot = self._slots[key] = _Slot(key, num_tokens, self._pool.take(count), cost)
        slot.writer = self._hold(slot, owner)
        return slot.writer

    def _settle(self, entry: Entry, state: EntryState) -> None:
        self._check_writer(entry)
        slot = entry._slot
        slot.state, slot.writer = state, None
        if state is EntryState.FAILED:
            del self._slots[slot.key]
            self._failed.append(slot)
        self._tell(slot)

    def _tell(self, slot: _Slot) -> None:
        for hold in list(slot.holds):
            watchers, hold._watchers = hold._watchers, []
            for callback in watchers:
                callback(hold)
        for watcher in self._room_watchers:
            watcher()

    @staticmethod
    def _check_writer(entry: Entry) -> None:
        if not entry.is_new:
            raise InvariantBroken("embedding: only the writer may do this, once")
