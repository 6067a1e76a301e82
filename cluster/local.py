"""Instances in this process: for tests, for offline use, and for debugging all stages at once.

The same instances as everywhere, without a server in front. Knows no process.
"""

import os

from cluster.host import Hosted, InstanceSpec
from cluster.instance import HostedInstance
from cluster.instance_build import build_instance
from cluster.machine import ThisMachine
from kvtransfer.transports.inproc import Neighbour
from triptych.core.ids import InstanceId


class HostedHere:
    """One instance of this process."""

    def __init__(self, instance: HostedInstance) -> None:
        self.instance = instance
        self.pid = os.getpid()

    async def wait(self) -> str:
        """Return when the instance broke or was closed."""
        return await self.instance.wait()

    async def stop(self, drain_s: float) -> None:
        """Drain and close."""
        if drain_s > 0:
            await self.instance.drain(drain_s)
        await self.instance.close()

    async def kill(self) -> None:
        """Close at once; sessions and transfers break as if the process were gone."""
        await self.instance.close()


class LocalHost:
    """Builds instances here; with the transport ``auto`` they copy from each other directly."""

    def __init__(self, transport: str) -> None:
        self._neighbours: dict[InstanceId, Neighbour] | None = {} if transport == "auto" else None

    async def start(self, spec: InstanceSpec) -> Hosted:
        """Build one; it serves when this returns."""
        return HostedHere(await build_instance(spec, ThisMachine(self._neighbours)))

    async def close(self) -> None:
        """Nothing is held beyond the instances."""
