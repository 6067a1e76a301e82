"""Event streams of one instance towards its routers: who listens, what waits to be read.

Everything emitted between two turns of the event loop (one step of an engine) leaves in one batch.
Knows sessions and which jobs hang on them; does not know what a job is doing, nor any transport.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable

from triptych.core.errors import RequestError, Unavailable
from triptych.core.event import Encoded, Event, EventBatch, Failed, Finished, Tokens
from triptych.core.ids import JobId, SessionId

MAX_PENDING = 65_536
"""Events that wait for one reader; a router that reads less than that is gone or stuck."""


class _Session:
    """One reader: its unread events and its jobs in flight."""

    def __init__(self) -> None:
        self.pending: list[Event] = []
        self.jobs: set[JobId] = set()
        self.woken = asyncio.Event()
        self.is_broken = False


class Sessions:
    """All open sessions of an instance. One event loop, no locks."""

    def __init__(self, heartbeat_s: float, on_break: Callable[[SessionId], None]) -> None:
        """``on_break`` is told of a session that ended; it must cancel what was done for it."""
        self._heartbeat_s = heartbeat_s
        self._on_break = on_break
        self._open: dict[SessionId, _Session] = {}
        self._of_job: dict[JobId, SessionId] = {}

    def __len__(self) -> int:
        return len(self._open)

    @property
    def num_jobs(self) -> int:
        """Jobs in flight on all sessions."""
        return len(self._of_job)

    @property
    def names(self) -> tuple[SessionId, ...]:
        """Open sessions."""
        return tuple(self._open)

    async def stream(self, name: SessionId) -> AsyncGenerator[EventBatch, None]:
        """Open a session and yield its batches: one (empty) at once, then whenever something
        happened, and an empty one after every ``heartbeat_s`` of silence. Closing the iterator
        cancels the session's jobs. Raises RequestError if the name is taken."""
        if name in self._open:
            raise RequestError("the session is open already", field="session")
        session = self._open[name] = _Session()
        try:
            yield EventBatch()
            while not session.is_broken:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._heartbeat_s):
                        await session.woken.wait()
                session.woken.clear()
                events, session.pending = tuple(session.pending), []
                yield EventBatch(events)
            raise Unavailable("the session was closed by the instance")
        finally:
            del self._open[name]
            self._end(name, session)

    def join(self, name: SessionId, job: JobId) -> bool:
        """Hang a job on its session. False if it is there already (the same job, sent again).

        Raises Unavailable when the session is not open."""
        session = self._open.get(name)
        if session is None or session.is_broken:
            raise Unavailable("the session of the job is not open")
        if self._of_job.get(job) is not None:
            return False
        session.jobs.add(job)
        self._of_job[job] = name
        return True

    def leave(self, job: JobId) -> None:
        """Take a job off its session without an event (refused, or cancelled by its router)."""
        name = self._of_job.pop(job, None)
        if name is not None and name in self._open:
            self._open[name].jobs.discard(job)

    def emit(self, event: Event) -> None:
        """Queue an event for the session of its job; one that has no session any more is dropped.
        An event that ends the job (all but Tokens) takes it off its session."""
        name = self._of_job.get(event.job)
        if name is None:
            return
        session = self._open[name]
        session.pending.append(event)
        session.woken.set()
        match event:
            case Finished() | Failed() | Encoded():
                self.leave(event.job)
            case Tokens():
                pass
        if len(session.pending) > MAX_PENDING:
            self._end(name, session)

    def close(self) -> None:
        """End every session: their readers get Unavailable, their jobs are cancelled."""
        for name, session in list(self._open.items()):
            self._end(name, session)

    def _end(self, name: SessionId, session: _Session) -> None:
        if session.is_broken:
            return
        session.is_broken = True
        session.woken.set()
        for job in session.jobs:
            self._of_job.pop(job, None)
        session.jobs.clear()
        self._on_break(name)
