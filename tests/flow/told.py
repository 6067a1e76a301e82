"""What a router knows of caches, beside what the instances themselves say that they hold.

For clusters whose instances are objects of this process.
"""

import asyncio

from cluster.bulletin import Bulletin
from cluster.catalog import Catalog
from tests.flow.harness import Flow
from tests.patience import PATIENCE_S
from triptych.core.ids import InstanceId


def catalog(running: Flow) -> Catalog:
    """The router's."""
    return running.core.stages.knowledge.catalog


def bulletin(running: Flow, instance: InstanceId) -> Bulletin:
    """What an instance itself says that it holds."""
    found = running.cluster.instance(instance)._parts.close.__self__._bulletin
    assert isinstance(found, Bulletin)
    return found


def agrees(running: Flow) -> bool:
    """Whether the router knows exactly what every instance holds."""
    truth = Catalog()
    for each in running.cluster.view().instances:
        name = each.description.id
        truth.apply(name, bulletin(running, name).snapshot())
    known = {name: shelf.keys for name, shelf in catalog(running)._shelves.items()}
    return known == {name: shelf.keys for name, shelf in truth._shelves.items()}


async def agreement(running: Flow) -> None:
    """Wait until the router knows all that the caches hold."""
    async with asyncio.timeout(PATIENCE_S):
        while not agrees(running):
            await asyncio.sleep(0.01)


async def told(running: Flow) -> None:
    """Wait until nothing is at work and the router has heard of all that came of it."""
    await running.assert_idle()
    await agreement(running)
