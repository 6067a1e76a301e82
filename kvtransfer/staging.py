"""Memory for bytes that are neither in the giver's blocks nor in the taker's: sealed memfds.

A giver's slots hold encoded pieces until their taker has read them; a taker's buffer holds what it
cannot read in place. Such memory goes from one connection to the next, so that what a transport
registers of it is registered once. Knows sizes, not what the bytes are.
"""

import fcntl
import mmap
import os
import threading

from triptych.core.host_bytes import HostBytes
from triptych.core.layout import Layout


class Slots(HostBytes):
    """``num_blocks`` slots of ``slot_bytes`` in a memfd of its own. Implements
    ``core.ports.BlockMemory``. Pages that are never touched cost nothing."""

    def __init__(self, slot_bytes: int, num_slots: int) -> None:
        self.layout = Layout("staging", "", "uint8", (slot_bytes,), 1)
        self.num_blocks = num_slots
        self.fd = os.memfd_create("triptych-staging", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.fd, slot_bytes * num_slots)
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
            self.view = memoryview(mmap.mmap(self.fd, slot_bytes * num_slots))
        except OSError:
            os.close(self.fd)
            raise

    def close(self) -> None:
        """Give the memory back once nobody refers to ``view`` any more. Idempotent."""
        self.view = memoryview(b"")
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Staging:
    """The staging memory of one instance. Any thread may call anything."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[Slots] = []
        self._is_closed = False

    def take(self, slot_bytes: int, num_slots: int) -> Slots:
        """Slots of at least this size and number for one connection; used before, if possible."""
        with self._lock:
            for slots in self._idle:
                if slots.layout.block_bytes >= slot_bytes and slots.num_blocks >= num_slots:
                    self._idle.remove(slots)
                    return slots
        return Slots(slot_bytes, num_slots)

    def give_back(self, slots: Slots) -> None:
        """The connection is over, and nobody reads or writes the slots any more."""
        with self._lock:
            if not self._is_closed:
                self._idle.append(slots)
                return
        slots.close()

    def close(self) -> None:
        """Let go of all; what is given back later is let go of at once."""
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, []
        for slots in idle:
            slots.close()
