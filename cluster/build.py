"""Wires a cluster together: host, supervisor, directory. What the router is given."""

import logging
import secrets
from collections.abc import Callable
from typing import Self

from cluster import ray_environment
from cluster.directory import Directory
from cluster.host import Host
from cluster.local import LocalHost
from cluster.process import ProcessHost
from cluster.supervisor import Supervisor
from triptych.core.census import Census
from triptych.core.config import Config
from triptych.core.errors import TriptychError
from triptych.core.ids import InstanceId
from triptych.core.lifecycle import InstanceState, Role
from triptych.core.ports import Instance
from triptych.core.view import ClusterView

log = logging.getLogger(__name__)


def _silent(_text: str) -> None:
    """No progress is shown."""


class Cluster:
    """Running pools. Members come and go by themselves; ``on_change`` tells."""

    def __init__(
        self,
        host: Host,
        supervisor: Supervisor,
        directory: Directory,
        config: Config,
        secret: bytes,
    ) -> None:
        self._host = host
        self._supervisor = supervisor
        self._directory = directory
        self._config = config
        self.secret = secret
        """Shared by all instances and routers; tenants' cache salts are made of it."""

    def view(self) -> ClusterView:
        """All instances and their states, no load counted."""
        return self._directory.view()

    def instance(self, instance: InstanceId) -> Instance:
        """The connection to an instance; KeyError when it left."""
        return self._directory.instance(instance)

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` on this event loop after every change of members."""
        self._directory.on_change(listener)

    def suspect(self, instance: InstanceId) -> None:
        """A session to it broke: it is fenced off and replaced."""
        self._supervisor.suspect(instance)

    def pids(self) -> dict[InstanceId, int]:
        """Process of every instance."""
        return self._supervisor.pids()

    @property
    def is_whole(self) -> bool:
        """Whether every place of the topology is filled and ready."""
        ready = [v for v in self.view().instances if v.state is InstanceState.READY]
        return len(ready) == self._supervisor.num_slots

    async def census(self) -> list[Census]:
        """Of every instance that answers."""
        found = []
        for instance in self._directory.instances():
            try:
                found.append(await instance.census())
            except TriptychError as error:
                log.warning("no census: %s", error)
        return sorted(found, key=lambda census: census.instance)

    async def kill(self, instance: InstanceId) -> None:
        """End an instance as a fault would; it is replaced. For tests and drills."""
        await self._supervisor.kill(instance)

    async def assign(self, place: str, role: Role, drain_s: float | None = None) -> InstanceId:
        """Have a place (``decode-0``) serve another role; see ``Supervisor.assign``."""
        return await self._supervisor.assign(place, role, drain_s)

    async def close(self, drain_s: float | None = None) -> None:
        """Stop everything; ``drain_s`` (default ``cluster.drain_s``) bounds the wait for work in
        flight. No process, segment or directory is left."""
        wait_s = self._config.cluster.drain_s if drain_s is None else drain_s
        try:
            await self._supervisor.close(wait_s)
        finally:
            await self._host.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


async def start_cluster(
    config: Config, on_progress: Callable[[str], None] = _silent, host: Host | None = None
) -> Cluster:
    """Start every instance of the topology; returns when all serve. Raises TriptychError, and then
    nothing is left running. ``host`` takes the place of the configured backend."""
    host = host or await _open_host(config, on_progress)
    secret = config.cluster.secret.encode() or secrets.token_bytes(32)
    directory = Directory()
    try:
        supervisor = Supervisor(host, config, secret, directory, on_progress)
        await supervisor.start()
    except BaseException:
        await host.close()
        raise
    return Cluster(host, supervisor, directory, config, secret)


async def _open_host(config: Config, on_progress: Callable[[str], None]) -> Host:
    match config.cluster.backend:
        case "local":
            return LocalHost(config.transfer.transport)
        case "process":
            return ProcessHost()
        case _:
            ray_environment.prepare(config)
            from cluster.ray_actors import RayHost  # reads that environment; costs 0.3 s

            on_progress("Ray: starting")
            return await RayHost.open(config)
