"""Wires the tiers below one block store."""

from collections.abc import Callable
from pathlib import Path

import msgspec

from triptych.cache.tiers import TierIndex
from triptych.cache.watch import TierWatchers
from triptych.core.clock import Clock
from triptych.core.config import CacheConfig
from triptych.core.errors import ConfigError
from triptych.core.hashing import digest
from triptych.core.ports import BlockMemory
from triptych.offload import packing as packings
from triptych.offload.disk import DiskFile, Shape
from triptych.offload.host import HostSlots, aligned
from triptych.offload.mover import Mover, relay
from triptych.offload.tiers import Tiers


class Below(msgspec.Struct, frozen=True):
    """What is common to the tiers of one instance's stores."""

    slot: str
    """Name of the instance without its incarnation: the next one finds the files again."""
    cache: CacheConfig
    secret: bytes
    """Of the cluster. Files made under another one are emptied."""
    clock: Clock
    call_soon: Callable[..., object]
    """The event loop's ``call_soon_threadsafe``."""


def build_mover(below: Below, memory: BlockMemory, share: float) -> Mover:
    """The tiers of a store, which get ``share`` of the instance's budgets. Touches all memory and
    disk at once: not on an event loop. Raises ConfigError that names the key."""
    cache, layout = below.cache, memory.layout
    packing = packings.packing(cache.at_rest, layout)
    slot_bytes = aligned(packing.packed_bytes)
    num_slots = int(cache.host_bytes * share) // slot_bytes
    if num_slots < 1:
        raise ConfigError(
            f"cache.host_bytes: the {layout.kind} share holds no block of {slot_bytes} bytes"
        )
    host = HostSlots(num_slots, slot_bytes)
    disk = None
    if cache.disk_bytes:
        about = digest("tier", layout.fingerprint.encode(), packing.name.encode())
        shape = Shape.within(int(cache.disk_bytes * share), about, slot_bytes)
        path = Path(cache.disk_path) / f"{below.slot}.{layout.kind}.tier"
        disk = DiskFile(path, shape, below.secret)
    watchers = TierWatchers()
    index = TierIndex(
        num_slots,
        disk.shape.num_slots if disk is not None else 0,
        disk.found if disk is not None else None,
        relay(watchers, below.call_soon),
    )
    tiers = Tiers(memory, packing, index, host, disk)
    return Mover(layout.kind, tiers, below.clock, watchers)
