"""Which instance works for whom: one session per instance, jobs in, events out, load counted.

A lost session fails its jobs with ``instance_lost``. Knows no request, no token's meaning, no
retry: those are the journey's.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Protocol, Self

import msgspec

from router.load import Load
from router.views import Views
from triptych.core.errors import (
    DeadlineExceeded,
    InstanceLost,
    StaleCache,
    TriptychError,
    Unavailable,
)
from triptych.core.event import Encoded, Event, EventBatch, Failed, Finished, Tokens
from triptych.core.handoff import Job, LendJob
from triptych.core.ids import InstanceId, JobId, SessionId
from triptych.core.lifecycle import InstanceState
from triptych.core.ports import Instance
from triptych.core.view import ClusterView, InstanceView

log = logging.getLogger(__name__)


class Members(Protocol):
    """What the dispatcher asks of the cluster."""

    def view(self) -> ClusterView:
        """All instances, with no load counted."""
        ...

    def instance(self, instance: InstanceId) -> Instance:
        """The instance's connection; raises KeyError when it left."""
        ...

    def suspect(self, instance: InstanceId) -> None:
        """Its session broke: fence it off and replace it."""
        ...


class Listener(Protocol):
    """Who wants to hear what instances tell beside the events of jobs."""

    def heard(self, instance: InstanceId, batch: EventBatch) -> bool:
        """A batch came. False if something before it was lost: all is to be told again."""
        ...

    def lost(self, instance: InstanceId) -> None:
        """The instance is gone."""
        ...


class Witness(Protocol):
    """Who follows the jobs that this router has in flight."""

    def sent(self, instance: InstanceId, job: Job) -> None:
        """A job is on its way."""
        ...

    def told(self, event: Event) -> None:
        """An event of a job in flight came."""
        ...

    def over(self, job: JobId) -> None:
        """A job is not in flight any more, whatever the reason; perhaps it never was."""
        ...


class Scope:
    """The jobs of one attempt and their events in order of arrival.

    Leaving the scope cancels, in the background, what is not over; leaving it by an error or early
    cancels every job of the attempt, because what a finished one offered will not be taken.
    """

    def __init__(self, dispatcher: "Dispatcher") -> None:
        self._dispatcher = dispatcher
        self._events: asyncio.Queue[tuple[InstanceId, Event] | None] = asyncio.Queue()
        self._open: dict[JobId, InstanceId] = {}
        self._sent: dict[JobId, InstanceId] = {}
        self.cached = 0
        """Leading tokens of the prompt that need not be computed, for the count of the load."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if left := self._open if kind is None else self._sent:
            self._dispatcher.abandon(left)

    async def start(
        self, jobs: Sequence[tuple[InstanceId, Job]], deadline_s: float, cached: int = 0
    ) -> None:
        """Send jobs, all at once; their events arrive in this scope. Raises the first refusal,
        when every instance has answered, and DeadlineExceeded if one has not by ``deadline_s``."""
        self.cached = cached
        sent = [self._start(instance, job) for instance, job in jobs]
        try:
            async with asyncio.timeout_at(deadline_s):
                answers = await asyncio.gather(*sent, return_exceptions=True)
        except TimeoutError:
            raise DeadlineExceeded from None
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer

    async def _start(self, instance: InstanceId, job: Job) -> None:
        self._open[job.header.id] = self._sent[job.header.id] = instance
        try:
            await self._dispatcher.submit(instance, job, self)
        except TriptychError as error:
            del self._sent[job.header.id]
            self._open.pop(job.header.id, None)
            if isinstance(job, LendJob):  # nobody needs a loan: what was to be lent is computed
                raise StaleCache(f"{instance} lends nothing: {error}") from error
            error.blame = instance
            raise

    def put(self, instance: InstanceId, event: Event) -> None:
        """An event of one of this scope's jobs; called by the dispatcher."""
        if isinstance(event, Encoded | Finished | Failed):
            self._open.pop(event.job, None)
        self._events.put_nowait((instance, event))

    async def events(self, deadline_s: float) -> AsyncGenerator[tuple[InstanceId, Event], None]:
        """Events until the caller stops asking; raises DeadlineExceeded at the loop's time
        ``deadline_s``, behind what has come by then."""
        alarm = asyncio.get_running_loop().call_at(deadline_s, self._events.put_nowait, None)
        try:
            while (item := await self._events.get()) is not None:
                yield item
        finally:
            alarm.cancel()
        raise DeadlineExceeded


class _Flight(msgspec.Struct, frozen=True):
    """A job that was sent and is not over."""

    instance: InstanceId
    job: Job
    scope: Scope


class Dispatcher:
    """Sessions to all instances, and the jobs in flight on each."""

    def __init__(
        self, members: Members, session: SessionId, listener: Listener | None = None
    ) -> None:
        self._members = members
        self._listener = listener
        self._session = session
        self._sessions: dict[InstanceId, asyncio.Task[None]] = {}
        self._live: set[InstanceId] = set()
        self._draining: set[InstanceId] = set()
        self._jobs: dict[JobId, _Flight] = {}
        self._sending: dict[JobId, asyncio.Task[TriptychError | None]] = {}
        self._loads: dict[InstanceId, Load] = {}
        self._views = Views()
        self._chores: set[asyncio.Task[None]] = set()
        self._is_closing = False
        self.changed = asyncio.Event()
        """Set whenever an instance's session opens or ends."""
        self.witness: Witness | None = None
        self.on_relief: Callable[[], None] = _nothing
        """Called when an instance has less to do: a job is over, or its prompt is computed."""

    @property
    def session(self) -> SessionId:
        """The name under which instances know this router."""
        return self._session

    @property
    def live(self) -> frozenset[InstanceId]:
        """Instances whose session is open."""
        return frozenset(self._live)

    @property
    def num_jobs(self) -> int:
        """Jobs in flight."""
        return len(self._jobs)

    def scope(self) -> Scope:
        """A fresh scope for one attempt."""
        return Scope(self)

    def refresh(self) -> None:
        """Follow the cluster: open a session to every instance that joined."""
        if self._is_closing:
            return
        for view in self._members.view().instances:
            instance = view.description.id
            if instance not in self._sessions:
                self._loads[instance] = Load()
                self._views.forget()
                self._sessions[instance] = asyncio.create_task(self._listen(instance))

    def view(self) -> ClusterView:
        """Instances whose session is open, with the load this router put on them. One that takes
        no more jobs is draining from its first refusal on, whatever the cluster knows yet."""
        return self._views.view(self._members.view(), self._seen)

    def _seen(self, base: InstanceView) -> InstanceView | None:
        """An instance as this router sees it; None without a session."""
        instance = base.description.id
        load = self._loads.get(instance)
        if load is None or instance not in self._live:
            return None
        state = InstanceState.DRAINING if instance in self._draining else base.state
        return load.view(base, state)

    async def submit(self, instance: InstanceId, job: Job, scope: Scope) -> None:
        """Send ``job``; from here on its events go to ``scope``. Being cancelled does not take the
        job back: that is ``abandon``'s, which waits for the answer first."""
        if instance not in self._live:
            raise Unavailable(f"{instance} has no session")
        self._jobs[job.header.id] = _Flight(instance, job, scope)
        self._loads[instance].add(job, scope.cached)
        self._views.touch(instance)
        if self.witness is not None:
            self.witness.sent(instance, job)
        sending = asyncio.create_task(self._send(instance, job))
        self._sending[job.header.id] = sending
        sending.add_done_callback(lambda _: self._sending.pop(job.header.id))
        error = await asyncio.shield(sending)
        if error is not None:
            self._forget(job.header.id)
            if isinstance(error, Unavailable) and instance in self._live:
                self._draining.add(instance)
                self._views.forget()
            raise error

    async def _send(self, instance: InstanceId, job: Job) -> TriptychError | None:
        try:
            await self._members.instance(instance).submit(job)
        except KeyError:
            return InstanceLost(f"{instance} left")
        except TriptychError as error:
            return error
        return None

    def abandon(self, jobs: dict[JobId, InstanceId]) -> None:
        """Cancel jobs whose scope was left. Returns at once; ``close`` waits for the rest."""
        by_instance: dict[InstanceId, list[JobId]] = {}
        for job, instance in jobs.items():
            self._forget(job)
            by_instance.setdefault(instance, []).append(job)
        for instance, ids in by_instance.items():
            if instance in self._live:
                self._chore(self._cancel(instance, ids))

    async def settle(self) -> None:
        """Wait until every cancellation under way now is confirmed."""
        if self._chores:
            await asyncio.wait(set(self._chores))

    async def close(self) -> None:
        """End every session; instances cancel what was left of this router."""
        self._is_closing = True
        await self.settle()
        for task in self._sessions.values():
            task.cancel()
        await asyncio.gather(*self._sessions.values(), return_exceptions=True)
        self._sessions.clear()

    async def _listen(self, instance: InstanceId) -> None:
        """Follow one instance's session to its end."""
        try:
            connection = self._members.instance(instance)
            async with aclosing(connection.open(self._session)) as batches:
                async for batch in batches:
                    if instance not in self._live:
                        self._live.add(instance)
                        self._views.forget()
                        self.changed.set()
                    for event in batch.events:
                        self._deliver(instance, event)
                    self._hear(instance, batch)
            reason = "the session ended"
        except KeyError:
            reason = "it left the cluster"
        except TriptychError as error:
            reason = str(error)
        finally:
            self._live.discard(instance)
            self._draining.discard(instance)
            self._views.forget()
            if self._listener is not None:
                self._listener.lost(instance)
        log.warning("%s is lost: %s", instance, reason)
        self._drop(instance, reason)
        self._members.suspect(instance)

    def _hear(self, instance: InstanceId, batch: EventBatch) -> None:
        """Pass on what is told of caches and links; if some was lost, have it told again."""
        if self._listener is not None and not self._listener.heard(instance, batch):
            self._chore(self._resync(instance))

    async def _resync(self, instance: InstanceId) -> None:
        try:
            await self._members.instance(instance).resync(self._session)
        except (KeyError, TriptychError) as error:
            log.info("resync of %s: %s", instance, error)

    def _deliver(self, instance: InstanceId, event: Event) -> None:
        flight = self._jobs.get(event.job)
        if flight is None or flight.instance != instance:
            return  # a job that was abandoned meanwhile
        if self.witness is not None:
            self.witness.told(event)
        if isinstance(event, Encoded | Finished | Failed):
            self._forget(event.job)
        elif isinstance(event, Tokens) and (load := self._loads.get(instance)) is not None:
            self._views.touch(instance)
            if load.drew(flight.job, len(event.tokens)):
                self.on_relief()
        flight.scope.put(instance, event)

    def _drop(self, instance: InstanceId, reason: str) -> None:
        """Fail all jobs of a lost instance. Its session task stays known: ids are never reused."""
        for job in [job for job, flight in self._jobs.items() if flight.instance == instance]:
            self._deliver(instance, Failed(job, InstanceLost.code, reason, blame=instance))
        self._loads.pop(instance, None)
        self.changed.set()

    def _forget(self, job: JobId) -> None:
        if self.witness is not None:
            self.witness.over(job)
        flight = self._jobs.pop(job, None)
        if flight is not None and (load := self._loads.get(flight.instance)) is not None:
            load.remove(flight.job)
            self._views.touch(flight.instance)
            self.on_relief()

    async def _cancel(self, instance: InstanceId, jobs: Sequence[JobId]) -> None:
        # A cancel must not overtake its job on the way.
        if sending := [self._sending[job] for job in jobs if job in self._sending]:
            await asyncio.wait(sending)
        try:
            await self._members.instance(instance).cancel(jobs)
        except (KeyError, TriptychError) as error:
            # An instance that cannot be told is lost; its session says so by itself.
            log.info("cancel at %s: %s", instance, error)

    def _chore(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)


def _nothing() -> None:
    """Nobody waits for room."""
