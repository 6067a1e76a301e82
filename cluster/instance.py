"""One instance: services of its stages over shared engines, stores and transfers.

Implements ``core.ports.Instance``. Knows who gets which job and what is counted where; does not
know how a stage works, nor who hosts the instance.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from typing import Any, Protocol

import msgspec

from cluster.epochs import Epochs
from triptych.core.census import Census, Holding
from triptych.core.errors import (
    InstanceLost,
    InvariantBroken,
    RequestError,
    TriptychError,
    Unavailable,
)
from triptych.core.event import EventBatch
from triptych.core.handoff import EncodeJob, Job, LanguageJob, LendJob
from triptych.core.ids import JobId, SessionId
from triptych.core.lifecycle import Stage
from triptych.core.view import Description
from triptych.wire.sessions import Sessions

log = logging.getLogger(__name__)

_CHECK_AFTER_S = 0.5

Rows = tuple[list[Holding], dict[str, int]]


class Service(Protocol):
    """A stage of this instance."""

    def submit(self, job: Any) -> None:
        """Accept a job or raise why not."""
        ...

    async def cancel(self, job: JobId) -> None:
        """End a job; return when it holds nothing. Unknown ids are fine."""
        ...

    def jobs(self) -> dict[JobId, SessionId]:
        """Jobs that hold something, and their sessions."""
        ...


class Parts(msgspec.Struct, frozen=True):
    """What an instance is made of; ``cluster.instance_build`` fills it."""

    description: Description
    services: dict[Stage, Service]
    lending: Service | None
    """Lends cached prefixes, where there is KV."""
    sessions: Sessions
    pumps: tuple[Coroutine[Any, Any, None], ...]
    """Run for the life of the instance; one that ends or raises breaks it."""
    censuses: tuple[Callable[[], Rows], ...]
    checks: tuple[Callable[[], None], ...]
    """Raise InvariantBroken; called whenever the instance falls idle."""
    close: Callable[[], Coroutine[Any, Any, None]]
    """Free what the parts hold, in the right order."""


class HostedInstance:
    """A running instance in this process."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._sessions = parts.sessions
        self._services = tuple(parts.services.values())
        if parts.lending is not None:
            self._services += (parts.lending,)
        self._tasks: set[asyncio.Task[None]] = set()
        self._epochs = Epochs()
        self._is_draining = False
        self._changed = asyncio.Event()
        self._broken: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._pumps = [asyncio.create_task(self._guard(pump)) for pump in parts.pumps]
        self._checking: asyncio.TimerHandle | None = None
        self._closing: asyncio.Task[None] | None = None

    async def describe(self) -> Description:
        """What this instance says of itself."""
        return self._parts.description

    def open(self, session: SessionId) -> AsyncGenerator[EventBatch, None]:
        """See ``core.ports.Instance.open``."""
        if self._broken.done():
            raise Unavailable("the instance is closed")
        return self._sessions.stream(session)

    async def submit(self, job: Job) -> None:
        """See ``core.ports.Instance.submit``."""
        if self._is_draining:
            raise Unavailable("the instance is draining")
        service = self._service_of(job)
        self._epochs.check(job.header)
        if not self._sessions.join(job.header.session, job.header.id):
            return
        try:
            service.submit(job)
        except TriptychError:
            self._sessions.leave(job.header.id)
            raise

    async def resync(self, session: SessionId) -> None:
        """See ``core.ports.Instance.resync``."""
        self._sessions.resync(session)

    async def cancel(self, jobs: Sequence[JobId]) -> None:
        """See ``core.ports.Instance.cancel``."""
        ending = asyncio.create_task(self._end(jobs))
        ends: set[asyncio.Future[Any]] = {ending, self._broken}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if not ending.done():  # nobody is left to confirm it
            ending.cancel()
            raise InstanceLost(self._broken.result())
        ending.result()

    async def census(self) -> Census:
        """See ``core.ports.Instance.census``."""
        held: list[Holding] = []
        totals: dict[str, int] = {}
        for take in self._parts.censuses:
            rows, sizes = take()
            held.extend(rows)
            totals.update(sizes)
        held.extend(Holding("task", task.get_name(), 1) for task in self._tasks if not task.done())
        name = self._parts.description.id
        return Census(instance=name, held=tuple(sorted(held)), totals=totals)

    async def drain(self, timeout_s: float) -> bool:
        """See ``core.ports.Instance.drain``."""
        self._is_draining = True
        try:
            async with asyncio.timeout(timeout_s):
                while self._is_busy:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True

    async def wait(self) -> str:
        """Return when the instance broke or was closed, and say why."""
        return await asyncio.shield(self._broken)

    async def close(self) -> None:
        """End everything at once and free it. Idempotent."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._close())
        await asyncio.shield(self._closing)

    def session_ended(self, session: SessionId) -> None:
        """A session broke: cancel, in the background, whatever was done for it."""
        lost = [
            job
            for service in self._services
            for job, owner in service.jobs().items()
            if owner == session
        ]
        if lost:
            task = asyncio.create_task(self._end(lost), name=f"cancel {session}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def touch(self) -> None:
        """Something was submitted or let go of: tell who drains, look later whether all is well."""
        self._changed.set()
        if self._checking is None and self._parts.checks:
            loop = asyncio.get_running_loop()
            self._checking = loop.call_later(_CHECK_AFTER_S, self._check)

    def _check(self) -> None:
        """Verify the invariants if the instance is idle; busy ones are looked at again later."""
        self._checking = None
        if self._broken.done() or self._is_busy:
            return
        try:
            for check in self._parts.checks:
                check()
        except InvariantBroken as error:
            self._break(str(error))

    @property
    def _is_busy(self) -> bool:
        return any(service.jobs() for service in self._services)

    def _service_of(self, job: Job) -> Service:
        if isinstance(job, LendJob):
            service, what = self._parts.lending, "lend"
        else:
            stage = _stage(job)
            service, what = self._parts.services.get(stage), stage.value
        if service is None:
            raise RequestError(f"this instance does not {what}", field="job")
        return service

    async def _end(self, jobs: Sequence[JobId]) -> None:
        """Cancel jobs at every service; return when they hold nothing."""
        for job in jobs:
            self._sessions.leave(job)
        ends = (service.cancel(job) for job in jobs for service in self._services)
        await asyncio.gather(*ends)

    def _break(self, reason: str) -> None:
        """Something that cannot be, was: answer nobody any more."""
        if not self._broken.done():
            log.error("%s is broken: %s", self._parts.description.id, reason)
            self._broken.set_result(reason)
            self._sessions.close()

    async def _guard(self, pump: Coroutine[Any, Any, None]) -> None:
        """A pump that ends by itself breaks the instance."""
        try:
            await pump
        except Exception as error:
            log.debug("the pump's end", exc_info=True)
            self._break(f"a pump ended: {error!r}")

    async def _close(self) -> None:
        self._is_draining = True
        self._sessions.close()
        if not self._broken.done():
            self._broken.set_result("it was closed")
            await self._end([job for one in self._services for job in one.jobs()])
        if self._checking is not None:
            self._checking.cancel()
        await self._parts.close()
        for task in (*self._pumps, *self._tasks):
            task.cancel()
        await asyncio.gather(*self._pumps, *self._tasks, return_exceptions=True)


def _stage(job: EncodeJob | LanguageJob) -> Stage:
    """The stage that a job is for."""
    if isinstance(job, EncodeJob):
        return Stage.ENCODE
    return Stage.DECODE if job.publish is None else Stage.PREFILL
