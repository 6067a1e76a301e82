"""Keeps every place of the topology filled: start, watch, fence off, start again, perhaps in
another role.

Three witnesses say that an incarnation is dead: its host, a session of the supervisor's own that
broke or fell silent, and a router whose session did. The first word counts. A role changes by
draining and starting anew; caches are not kept over it. Knows no job.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import aclosing, suppress
from typing import Any

import msgspec

from cluster.directory import Directory
from cluster.host import LAST_WORDS_S, Host, Hosted, InstanceSpec
from cluster.roles import configs_of, places_of
from triptych.core import topology
from triptych.core.config import Config
from triptych.core.errors import ConfigError, InstanceLost, TriptychError, Unavailable
from triptych.core.ids import InstanceId, SessionId
from triptych.core.lifecycle import Role, Stage

log = logging.getLogger(__name__)

_SHORT_LIFE_S = 10.0
_MAX_BACKOFF_S = 10.0


class _Move:
    """A place on its way to another role."""

    def __init__(self, role: Role, drain_s: float) -> None:
        self.role = role
        self.drain_s = drain_s
        self.done: asyncio.Future[InstanceId] = asyncio.get_running_loop().create_future()
        """The incarnation that serves the new role, or why there is none."""
        self.done.add_done_callback(lambda done: done.cancelled() or done.exception())


class Slot:
    """One place in the topology, filled by one incarnation after the other."""

    def __init__(self, name: str, role: Role) -> None:
        self.name = name
        self.role = role
        self.incarnation = -1
        self.hosted: Hosted | None = None
        self.started = asyncio.Event()
        """Set when the first incarnation serves or cannot."""
        self.error: TriptychError | None = None
        """Why the first incarnation could not start."""
        self.suspected = asyncio.Event()
        self.called = asyncio.Event()
        """Set when the incarnation is to make room for one in another role."""
        self.move: _Move | None = None

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
        self._configs = configs_of(config)
        self._slots = [Slot(name, role) for name, role in places_of(config.cluster.topology)]
        self._tasks: list[asyncio.Task[None]] = []
        self._is_closing = False
        self._stopped = asyncio.Event()

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

    async def assign(self, place: str, role: Role, drain_s: float | None = None) -> InstanceId:
        """Have the instance of ``place`` end what it has, for at most ``drain_s`` (default
        ``cluster.drain_s``; what is left then goes elsewhere), and the next one there serve
        ``role``; its id once it serves. Who is cancelled here does not stop it.

        Raises ConfigError for an unknown place, Unavailable if it does not serve just now or a
        stage would be left without a ready instance, and what the start raises: then the place has
        its role of before.
        """
        slot = next((slot for slot in self._slots if slot.name == place), None)
        if slot is None:
            names = ", ".join(slot.name for slot in self._slots)
            raise ConfigError(f"place: {place!r} is not one of {names}")
        if slot.hosted is None or slot.move is not None or self._is_closing:
            raise Unavailable(f"{place} does not serve just now")
        if role == slot.role:
            return slot.id
        view = self._directory.view()
        for stage in (stage for stage in Stage if stage in slot.role):
            if all(other.description.id == slot.id for other in view.serving(stage)):
                raise Unavailable(f"{place} is the only one ready to {stage.value}")
        wait_s = self._config.cluster.drain_s if drain_s is None else drain_s
        slot.move = _Move(role, wait_s)
        self._directory.drain(slot.id)
        slot.called.set()
        return await asyncio.shield(slot.move.done)

    async def close(self, drain_s: float) -> None:
        """Stop every slot; nothing runs after this."""
        self._is_closing = True
        for slot in self._slots:
            if slot.hosted is not None:
                self._directory.drain(slot.id)
        stops = [slot.hosted.stop(drain_s) for slot in self._slots if slot.hosted is not None]
        results = await asyncio.gather(*stops, return_exceptions=True)
        self._stopped.set()
        for task in self._tasks:
            task.cancel()
        results += await asyncio.gather(*self._tasks, return_exceptions=True)
        for slot in self._slots:
            if slot.move is not None:
                slot.move.done.set_exception(Unavailable("the cluster is closing"))
                slot.move = None
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
                await self._serve(slot, await self._start(slot))
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
            if loop.time() - begun_s > _SHORT_LIFE_S or slot.called.is_set():
                failures = 0
            if failures:
                await asyncio.sleep(min(0.5 * 2 ** (failures - 1), _MAX_BACKOFF_S))
            failures += 1

    async def _start(self, slot: Slot) -> Hosted:
        """Start an incarnation, in its new role if there is one, and enter it into the
        directory."""
        move, role = slot.move, slot.role
        slot.called.clear()
        if move is not None:
            slot.role = move.role
        try:
            hosted = await self._enter(slot)
        except Exception as error:
            if move is not None:
                slot.role, slot.move = role, None
                is_typed = isinstance(error, TriptychError)
                move.done.set_exception(error if is_typed else Unavailable(repr(error)))
            raise
        slot.started.set()
        if move is not None:
            slot.move = None
            move.done.set_result(slot.id)
        return hosted

    async def _enter(self, slot: Slot) -> Hosted:
        """An incarnation that serves and is known."""
        self._on_progress(f"{slot.id}: starting")
        begun_s = asyncio.get_running_loop().time()
        stages = tuple(stage for stage in Stage if stage in slot.role)
        spec = InstanceSpec(slot.id, stages, self._configs[slot.role], self._secret)
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
            witnesses = hosted.wait(), _listen(hosted, slot.id), _accused(slot), _called(slot)
            reason = await _first(*witnesses)
            if slot.called.is_set() and slot.move is not None:
                self._on_progress(f"{slot.id}: ends to be {topology.name(slot.move.role)}")
                await hosted.stop(slot.move.drain_s)
            elif self._is_closing:  # it may still say its last words; or it hangs, and is ended
                with suppress(TimeoutError):
                    async with asyncio.timeout(LAST_WORDS_S):
                        await self._stopped.wait()
            else:
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


async def _called(slot: Slot) -> str:
    await slot.called.wait()
    return "it is to serve another role"


async def _listen(hosted: Hosted, instance: InstanceId) -> str:
    """Follow the heartbeats of an incarnation until they end."""
    try:
        async with aclosing(hosted.instance.open(SessionId(f"supervisor/{instance}"))) as stream:
            async for _ in stream:
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
