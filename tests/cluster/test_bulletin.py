"""What an instance tells of its caches and of the tiers below them."""

import asyncio

from cluster.bulletin import Bulletin
from cluster.catalog import Catalog
from triptych.cache.watch import TierWatchers, Watchers
from triptych.core.catalog import KEY_BYTES, Tier
from triptych.core.hashing import digest
from triptych.core.ids import InstanceId

KEYS = [digest("test", bytes([number])) for number in range(5)]
SHORT = [key[:KEY_BYTES] for key in KEYS]


async def test_device_and_tiers_are_told_apart():
    catalog, name = Catalog(), InstanceId("p")
    bulletin, device, tiers = Bulletin(0.001), Watchers(), TierWatchers()
    told = asyncio.Event()
    bulletin.watch("kv", Tier.DEVICE, device)
    bulletin.watch_tiers("kv", tiers, {Tier.HOST: KEYS[:1], Tier.DISK: KEYS[:3]})
    catalog.apply(name, bulletin.snapshot())
    assert catalog.prefix(name, SHORT) == (0, 1, 3)
    bulletin.sinks.append(lambda batch: (catalog.apply(name, batch), told.set()))
    device.stored(KEYS[0], 7)
    tiers.changed(Tier.HOST, KEYS[1], True)
    tiers.changed(Tier.DISK, KEYS[3], True)
    tiers.changed(Tier.DISK, KEYS[1], False)
    await told.wait()
    assert catalog.prefix(name, SHORT) == (1, 2, 4)
    told.clear()
    tiers.changed(Tier.HOST, KEYS[1], False)
    await told.wait()
    assert catalog.prefix(name, SHORT) == (1, 1, 1)
    bulletin.close()
