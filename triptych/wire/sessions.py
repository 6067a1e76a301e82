"""Event streams of one instance towards its routers: who listens, what waits to be read.

Everything emitted between two turns of the event loop (one step of an engine) leaves in one batch.
What an instance tells of its caches and links rides along. Knows sessions and which jobs hang on
them; does not know what a job is doing, nor any transport.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable

from triptych.core.catalog import CacheBatch, LinkReport
from triptych.core.errors import RequestError, Unavailable
from triptych.core.event import Encoded, Event, EventBatch, Failed, Finished, Tokens
from triptych.core.ids import JobId, SessionId

MAX_PENDING = 65_536
"""Events that wait for one reader; a router that reads less than that is gone or stuck."""
MAX_CACHE_BATCHES = 256
"""Batches of cache changes that wait for one reader; a snapshot takes the place of more."""


class News:
    """What a session may tell beside its events; nothing of it by default."""

    def snapshot(self) -> CacheBatch | None:
        """All there is in the caches now; None where sessions tell nothing of them."""
        return None

    def links(self) -> tuple[LinkReport, ...]:
        """The links of the instance as it finds them now."""
        return ()


class _Session:
    """One reader: its unread events and its jobs in flight."""

    def __init__(self) -> None:
        self.pending: list[Event] = []
        self.jobs: set[JobId] = set()
        self.woken = asyncio.Event()
        self.silent_s = 0.0
        """When it will have been silent for a heartbeat, if nothing comes."""
        self.heartbeat: asyncio.TimerHandle | None = None
        self.is_broken = False
        self.caches: list[CacheBatch] = []
        self.needs_snapshot = True
        self.links: tuple[LinkReport, ...] = ()

    def take(self, news: News) -> EventBatch:
        """All that was not read yet."""
        events, self.pending = tuple(self.pending), []
        caches, self.caches = tuple(self.caches), []
        if self.needs_snapshot:
            snapshot = news.snapshot()
            caches, self.needs_snapshot = () if snapshot is None else (snapshot,), False
        before, self.links = self.links, news.links()
        return EventBatch(events, caches, () if self.links == before else self.links)


class Sessions:
    """All open sessions of an instance. One event loop, no locks."""

    def __init__(
        self, heartbeat_s: float, on_break: Callable[[SessionId], None], news: News | None = None
    ) -> None:
        """``on_break`` is told of a session that ended; it must cancel what was done for it."""
        self.news = news or News()
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
        """Open a session and yield its batches: one without events at once, then whenever something
        happened, and an empty one after every ``heartbeat_s`` of silence. Closing the iterator
        cancels the session's jobs. Raises RequestError if the name is taken."""
        if name in self._open:
            raise RequestError("the session is open already", field="session")
        session = self._open[name] = _Session()
        try:
            yield session.take(self.news)
            while not session.is_broken:
                self._await_silence(session)
                await session.woken.wait()
                session.woken.clear()
                yield session.take(self.news)
            if session.pending:  # it came while the batch before was on its way
                yield session.take(self.news)
            raise Unavailable("the session was closed by the instance")
        finally:
            if session.heartbeat is not None:
                session.heartbeat.cancel()
            del self._open[name]
            self._end(name, session)

    def _await_silence(self, session: _Session) -> None:
        """Have the session woken when nothing was told for long enough from now on. One timer a
        session: most batches come long before it is due, and it is set again only then."""
        loop = asyncio.get_running_loop()
        session.silent_s = loop.time() + self._heartbeat_s
        if session.heartbeat is None:
            session.heartbeat = loop.call_at(session.silent_s, self._beat, session)

    def _beat(self, session: _Session) -> None:
        loop = asyncio.get_running_loop()
        if session.silent_s > loop.time():
            session.heartbeat = loop.call_at(session.silent_s, self._beat, session)
        else:
            session.heartbeat = None
            session.woken.set()

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
            session.pending.clear()
            self._end(name, session)

    def publish(self, batch: CacheBatch) -> None:
        """Tell every session of changes in the caches. One that reads too slowly hears a snapshot
        instead, when it reads again."""
        for session in self._open.values():
            if not session.needs_snapshot:
                session.caches.append(batch)
                session.needs_snapshot = len(session.caches) > MAX_CACHE_BATCHES
            session.woken.set()

    def resync(self, name: SessionId) -> None:
        """The session hears a snapshot next. Raises Unavailable when it is not open."""
        session = self._open.get(name)
        if session is None:
            raise Unavailable("the session is not open")
        session.needs_snapshot = True
        session.woken.set()

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
