"""Wires the tiers below the block stores of one instance, where the configuration asks for any."""

import asyncio
import contextlib

import msgspec

from cluster.bulletin import Bulletin
from cluster.host import InstanceSpec
from kvtransfer.prefixes import Lent, Prefixes
from triptych.cache.kv import KvCache
from triptych.cache.watch import Watchers
from triptych.core.catalog import Tier
from triptych.core.clock import Clock
from triptych.core.errors import TriptychError
from triptych.core.lifecycle import Stage
from triptych.core.ports import BlockMemory, Executors
from triptych.offload.build import Below, build_mover
from triptych.offload.mover import Mover
from triptych.offload.prefixes import TierPrefixes


class Movers(msgspec.Struct, frozen=True):
    """The tiers of each store of an instance; None where there are none."""

    kv: Mover | None = None
    embedding: Mover | None = None

    async def close(self) -> None:
        """End their threads and give memory and files back."""
        for mover in (self.kv, self.embedding):
            if mover is not None:
                await mover.close()


async def build_tiers(spec: InstanceSpec, executors: Executors, clock: Clock) -> Movers:
    """The tiers, in a thread: all their memory is touched. If we are cancelled, they are closed
    first. Raises ConfigError."""
    if not spec.config.cache.host_bytes:
        return Movers()
    soon = asyncio.get_running_loop().call_soon_threadsafe
    slot = spec.id.rpartition("@")[0] or spec.id
    below = Below(slot, spec.config.cache, spec.secret, clock, soon)
    can_prefill = Stage.PREFILL in spec.role
    work = asyncio.to_thread(_build, below, executors, can_prefill=can_prefill)
    building = asyncio.create_task(work)
    try:
        return await asyncio.shield(building)
    except asyncio.CancelledError:
        with contextlib.suppress(TriptychError):
            await (await building).close()
        raise


def _build(below: Below, executors: Executors, *, can_prefill: bool) -> Movers:
    """Each store gets the share of the budgets that it has of the instance's block memory. Where
    no prompt is computed, KV comes from those who did: nobody would ask for what lies below."""
    language, embeddings = executors.language, executors.embeddings
    stores: dict[str, BlockMemory] = {}
    if language is not None and can_prefill:
        stores["kv"] = language.memory
    if embeddings is not None:
        stores["embedding"] = embeddings
    sizes = {name: store.num_blocks * store.layout.block_bytes for name, store in stores.items()}
    built: dict[str, Mover] = {}
    try:
        for name, store in stores.items():
            built[name] = build_mover(below, store, sizes[name] / sum(sizes.values()))
    except TriptychError:
        for mover in built.values():
            mover.end()
        raise
    return Movers(**built)


def tell(kind: str, cache: Watchers, mover: Mover, bulletin: Bulletin) -> None:
    """The tiers take note of what a cache holds, and what they hold is told of."""
    cache.add(mover)
    there = {tier: mover.keys(tier) for tier in (Tier.HOST, Tier.DISK)}
    bulletin.watch_tiers(kind, mover.watchers, there)


def prefixes_of(kv: KvCache, mover: Mover | None, lent: Lent, bulletin: Bulletin) -> Prefixes:
    """Where KV of prompts may lie beside the tree, the nearest first: the tiers and other
    instances."""
    if mover is None:
        return Prefixes((lent,))
    tell("kv", kv.watchers, mover, bulletin)
    return Prefixes((TierPrefixes(kv, mover), lent))
