"""The host tier's memory: slots of page-aligned, anonymous memory that are there from the start.

On a GPU the bytes come through the store's own pinned view (``BlockMemory.stage``), so these pages
need not be pinned themselves. Knows slots by number and nothing of keys.
"""

import mmap
import os

from triptych.core.errors import ConfigError

PAGE = 4096
"""Alignment of slots in memory and on disk: what direct I/O asks for."""


def aligned(num_bytes: int) -> int:
    """``num_bytes`` rounded up to whole pages."""
    return -(-num_bytes // PAGE) * PAGE


def pages(num_bytes: int) -> memoryview:
    """Zeroed pages, touched already so that no later write waits for them. Raises OSError."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
    return memoryview(mmap.mmap(-1, aligned(num_bytes), flags=flags))


class HostSlots:
    """``num_slots`` slots of ``slot_bytes``, a multiple of the page. Raises ConfigError that names
    ``cache.host_bytes`` where the machine has no room."""

    def __init__(self, num_slots: int, slot_bytes: int) -> None:
        self.slot_bytes = slot_bytes
        wanted = num_slots * slot_bytes
        installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if wanted > installed:
            raise ConfigError(f"cache.host_bytes: {wanted} bytes, {installed} of memory installed")
        try:
            self._view = pages(wanted)
        except OSError as error:
            raise ConfigError(f"cache.host_bytes: no room for {wanted} bytes") from error

    def __getitem__(self, slot: int) -> memoryview:
        return self._view[slot * self.slot_bytes : (slot + 1) * self.slot_bytes]

    def close(self) -> None:
        """Give the memory back, once nobody refers to a slot any more."""
        self._view = memoryview(b"")
