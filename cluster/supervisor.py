"""Keeps the wanted number of instances per role alive: start, watch, fence off, start again.

Three witnesses say that an incarnation is dead: its host, a session of the supervisor's own that
broke or fell silent, and a router whose session did. The first word counts. Knows no job.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from cluster.directory import Directory
from cluster.host import Host, Hosted, InstanceSpec
from cluster.roles import configs_of
from triptych.core import topology
from triptych.core.config import Config
from triptych.core.errors import InstanceLost, TriptychError, Unavailable
from triptych.core.ids import InstanceId, SessionId
from triptych.core.lifecycle import Role, Stage

log = logging.getLogger(__name__)

_SHORT_LIFE_S = 10.0
_MAX_BACKOFF_S = 10.0


class Slot:
    """One place in the topology, filled by one incarnation after the other."""

    def __init__(self, role: Role, index: int, config: Config) -> None:
        self.role = tuple(stage for stage in Stage if stage in role)
        word = self.role[0].value if len(self.role) == 1 else topology.name(role).lower()
        self.name = f"{word}-{index}"
        self.config = config
        self.incarnation = -1
        self.hosted: Hosted | None = None
        self.started = asyncio.Event()
        """Set when the first incarnation serves or cannot."""
        self.error: TriptychError | None = None
        """Why the first incarnation could not start."""
        self.suspected = asyncio.Event()

    @property
    def id(self) -> InstanceId:
        """Name of the present incarnation."""
        return InstanceId(f"{self.name}@{self.incarnation}")


class Supervisor:
    """One task per slot."""

    def __init__(
        self,
        host: Host,
        config: Config,
        secret: bytes,
        directory: Directory,
        on_progress: Callable[[str], None],
    ) -> None:
        self._host = host
        self._config = config
        self._secret = secret
        self._directory = directory
        self._on_progress = on_progress
        configs = configs_of(config)
        self._slots = [
            Slot(role, index, configs[role])
            for role, count in topology.parse(config.cluster.topology)
            for index in range(count)
        ]
        self._tasks: list[asyncio.Task[None]] = []
        self._is_closing = False

    async def start(self) -> None:
        """Start every slot, all at once; raises the first error, and then nothing is left."""
        self._tasks = [asyncio.create_task(self._keep(slot)) for slot in self._slots]
        try:
            for slot in self._slots:
                await slot.started.wait()
                if slot.error is not None:
                    raise slot.error
        except BaseException:
            await self.close(0.0)
            raise

    @property
    def num_slots(self) -> int:
        """Instances wanted."""
        return len(self._slots)

    def pids(self) -> dict[InstanceId, int]:
        """Process of every incarnation that runs."""
        return {slot.id: slot.hosted.pid for slot in self._slots if slot.hosted is not None}

    def suspect(self, instance: InstanceId) -> None:
        """Somebody's session to it broke: fence it off and replace it."""
        for slot in self._slots:
            if slot.id == instance:
                slot.suspected.set()

    async def kill(self, instance: InstanceId) -> None:
        """End an incarnation at once, as a fault would. KeyError if it does not run."""
        for slot in self._slots:
            if slot.id == instance and slot.hosted is not None:
                await slot.hosted.kill()
                return
        raise KeyError(instance)

    async def close(self, drain_s: float) -> None:
        """Stop every slot; nothing runs after this."""
        self._is_closing = True
        for slot in self._slots:
            if slot.hosted is not None:
                self._directory.drain(slot.id)
        stops = [slot.hosted.stop(drain_s) for slot in self._slots if slot.hosted is not None]
        results = await asyncio.gather(*stops, return_exceptions=True)
        for task in self._tasks:
            task.cancel()
        results += await asyncio.gather(*self._tasks, return_exceptions=True)
        for error in results:
            if isinstance(error, Exception):
                log.error("a slot ended with %r", error)

    async def _keep(self, slot: Slot) -> None:
        """Fill one slot, again and again."""
        loop, failures = asyncio.get_running_loop(), 0
        failure: TriptychError | None = None
        while not self._is_closing:
            slot.incarnation += 1
            begun_s = loop.time()
            try:
                hosted = await self._start(slot)
                slot.started.set()
                await self._serve(slot, hosted)
            except TriptychError as error:
                log.warning("%s failed: %s", slot.id, error)
                failure = error
            except Exception as error:
                # Whatever a host raises must neither empty a slot for good nor let a start hang.
                log.exception("%s failed", slot.id)
                failure = Unavailable(f"{slot.id} did not start: {error!r}")
            if not slot.started.is_set():
                slot.error = failure
                slot.started.set()
                return
            if loop.time() - begun_s > _SHORT_LIFE_S:
                failures = 0
            if failures:
                await asyncio.sleep(min(0.5 * 2 ** (failures - 1), _MAX_BACKOFF_S))
            failures += 1

    async def _start(self, slot: Slot) -> Hosted:
        """Start an incarnation and enter it into the directory."""
        self._on_progress(f"{slot.id}: starting")
        begun_s = asyncio.get_running_loop().time()
        spec = InstanceSpec(slot.id, slot.role, slot.config, self._secret)
        limit_s = self._config.cluster.start_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                hosted = await self._host.start(spec)
        except TimeoutError as error:
            raise Unavailable(f"{slot.id} did not start within {limit_s:g} s") from error
        except (OSError, msgspec.MsgspecError) as error:
            raise Unavailable(f"{slot.id} did not start: {error}") from error
        try:
            description = await hosted.instance.describe()
            slot.suspected.clear()
            slot.hosted = hosted
            self._directory.join(description, hosted.instance)
            took_s = asyncio.get_running_loop().time() - begun_s
            total = sum(description.memory_bytes.values()) / 1e6
            self._on_progress(f"{slot.id}: ready after {took_s:.1f} s, {total:.0f} MB")
        except BaseException:
            await self._end(slot, hosted)
            raise
        return hosted

    async def _serve(self, slot: Slot, hosted: Hosted) -> None:
        """Watch an incarnation to its end, and make sure of it."""
        try:
            reason = await _first(hosted.wait(), _listen(hosted, slot.id), _accused(slot))
            if not self._is_closing:
                log.warning("%s is lost: %s", slot.id, reason)
                self._on_progress(f"{slot.id}: lost ({reason})")
        finally:
            await self._end(slot, hosted)

    async def _end(self, slot: Slot, hosted: Hosted) -> None:
        """Nobody finds the incarnation any more, and nothing of it is left."""
        self._directory.leave(slot.id)
        slot.hosted = None
        try:
            await hosted.kill()
        finally:
            await hosted.instance.close()


async def _accused(slot: Slot) -> str:
    await slot.suspected.wait()
    return "a router's session to it broke"


async def _listen(hosted: Hosted, instance: InstanceId) -> str:
    """Follow the heartbeats of an incarnation until they end."""
    try:
        async for _ in hosted.instance.open(SessionId(f"supervisor/{instance}")):
            pass
    except TriptychError as error:
        return str(error)
    return str(InstanceLost("the supervisor's session ended"))


async def _first(*witnesses: Coroutine[Any, Any, str]) -> str:
    """The first witness's word; the others are sent home."""
    tasks = [asyncio.create_task(witness) for witness in witnesses]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return str(next(iter(done)).result())
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
