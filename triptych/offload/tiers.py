"""The tiers below one block store: entries into slots, out of slots, and from tier to tier.

Every method may be called on any thread and returns when its bytes are where they belong. The
index decides under one lock; bytes move outside it, between slots that are pinned or being written.
What a disk gives back is verified before it counts. Knows no queue and no event loop.
"""

import logging
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from triptych.cache.shelf import Held
from triptych.cache.tiers import DEMOTIONS, TierIndex
from triptych.core.catalog import Tier
from triptych.core.ids import BlockId, ContentHash
from triptych.core.ports import BlockMemory
from triptych.offload.disk import DiskFile
from triptych.offload.host import HostSlots, pages
from triptych.offload.packing import Packing

log = logging.getLogger(__name__)


class Tiers:
    """Host memory and perhaps a disk below ``memory``."""

    def __init__(
        self,
        memory: BlockMemory,
        packing: Packing,
        index: TierIndex,
        host: HostSlots,
        disk: DiskFile | None,
    ) -> None:
        self.memory = memory
        self.index = index
        """Only under ``lock``."""
        self.lock = threading.Condition()
        """Notified whenever room or bytes may have come."""
        self._packing = packing
        self._host = host
        self._disk = disk
        self._sinking: deque[ContentHash] = deque()
        self._is_failing = False
        """The disk refused a write: nothing is written to it any more."""
        self.num_damaged = 0
        """Entries on the disk that were not what was written, since the start."""

    def put(
        self, key: ContentHash, blocks: Sequence[BlockId], *, is_on_device: bool = False
    ) -> bool:
        """Copy an entry from the store to the host. The caller keeps the blocks as they are. False
        if it is there already, or if there is no room."""
        with self.lock:
            held = self.index.begin(Tier.HOST, key, len(blocks), is_on_device=is_on_device)
        if held is None:
            return False
        with self._writing(held):
            self.memory.stage(blocks)
            for slot, block in zip(held.slots, blocks, strict=True):
                self._packing.pack(self._block(block), self._host[slot])
        return True

    def fill(self, key: ContentHash, blocks: Sequence[BlockId]) -> bool:
        """Copy an entry into blocks of the store, from the fastest tier that has it. Whether it is
        in the blocks, verified; they hold anything otherwise. The caller owns the blocks."""
        return any(self._fill(tier, key, blocks) for tier in (Tier.HOST, Tier.DISK))

    def promote(self, key: ContentHash) -> bool:
        """Copy an entry from the disk to the host. Whether that was done."""
        with self._reading(Tier.DISK, key) as below:
            if below is None or self._disk is None:
                return False
            with self.lock:
                above = self.index.begin(Tier.HOST, key, len(below.slots))
            if above is None:
                return False
            is_whole = self._disk.read(key, below.slots, [self._host[slot] for slot in above.slots])
            with self.lock:
                (self.index.commit if is_whole else self.index.abort)(above)
                self._judge(below, is_whole=is_whole)
        return is_whole

    def demote(self, key: ContentHash | None = None) -> bool:
        """Copy one entry from the host to the disk: ``key``, or what the index names. Whether that
        was done."""
        with self.lock:
            key = self._next_demotion() if key is None else key
        if key is None or self._disk is None or self._is_failing:
            return False
        with self._reading(Tier.HOST, key, is_cold=True) as above:
            if above is None:
                return False
            with self.lock:
                below = self.index.begin(Tier.DISK, key, len(above.slots))
            if below is None:
                return False
            try:
                with self._writing(below):
                    self._disk.write(key, below.slots, [self._host[slot] for slot in above.slots])
            except OSError as error:
                self._is_failing = True
                log.warning("nothing is written to the disk tier any more: %s", error.strerror)
                return False
        return True

    def save(self) -> Iterator[bool]:
        """Copy what is only in memory to the disk, the most valuable first; whether each was."""
        with self.lock:
            keys = self.index.unsaved() if self._disk is not None else []
        return (self.demote(key) for key in keys)

    def close(self) -> None:
        """Give memory and file back; nobody calls anything after this."""
        self._host.close()
        if self._disk is not None:
            self._disk.close()

    def _next_demotion(self) -> ContentHash | None:
        """What to demote next, of a few found together: to find one means to look through all that
        is ready to leave. With the lock held."""
        while self._sinking or (found := self.index.demotions(DEMOTIONS)):
            if not self._sinking:
                self._sinking.extend(found)
            key = self._sinking.popleft()
            if self.index.is_sinking(key):
                return key
        return None

    def _fill(self, tier: Tier, key: ContentHash, blocks: Sequence[BlockId]) -> bool:
        with self._reading(tier, key) as held:
            if held is None or len(held.slots) != len(blocks):
                return False
            slots = [self._host[slot] for slot in held.slots] if tier is Tier.HOST else None
            if slots is None:
                slots = self._read(held)
                with self.lock:
                    self._judge(held, is_whole=slots is not None)
            for slot, block in zip(slots or (), blocks, strict=slots is not None):
                self._packing.unpack(slot, self._block(block))
            return slots is not None

    def _read(self, held: Held) -> list[memoryview] | None:
        """The bytes of an entry on the disk, in memory of their own; None if they are damaged."""
        if self._disk is None:
            return None
        size = self._disk.shape.slot_bytes
        try:
            scratch = pages(size * len(held.slots))
        except OSError as error:  # no memory for them: as good as lost
            log.warning("an entry of the disk tier was not read: %s", error.strerror)
            return None
        parts = [scratch[at * size : (at + 1) * size] for at in range(len(held.slots))]
        return parts if self._disk.read(held.key, held.slots, parts) else None

    def _judge(self, held: Held, *, is_whole: bool) -> None:
        """What the disk gave back is, or is not, what was written."""
        if not is_whole and held.is_ready:
            self.num_damaged += 1
            self.index.discard(held)

    @contextmanager
    def _reading(
        self, tier: Tier, key: ContentHash, *, is_cold: bool = False
    ) -> Iterator[Held | None]:
        """A READY entry whose slots stay as they are meanwhile; None if there is none. Behind it
        the entry counts as used, or (``is_cold``) as unused for longest."""
        with self.lock:
            held = self.index.pin(tier, key)
        try:
            yield held
        finally:
            if held is not None:
                with self.lock:
                    self.index.unpin(held, is_cold=is_cold)
                    self.lock.notify_all()

    @contextmanager
    def _writing(self, held: Held) -> Iterator[None]:
        """The entry is READY afterwards, or absent if anything was raised."""
        try:
            yield
        except BaseException:
            with self.lock:
                self.index.abort(held)
                self.lock.notify_all()
            raise
        with self.lock:
            self.index.commit(held)
            self.lock.notify_all()

    def _block(self, block: BlockId) -> memoryview:
        size = self.memory.layout.block_bytes
        return self.memory.view[block * size : (block + 1) * size]
