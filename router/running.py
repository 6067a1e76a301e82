"""One request in flight: its choices' tasks, what they have to say, and the place it holds.

Knows who ends it and that the first to do so is believed; knows no ledger and no stage.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable

from router.answer import Delta, Ticket, merged
from router.gate import Pass
from router.journey import Trip
from scheduler.admission import Admission
from scheduler.admission import Ticket as Admitted
from triptych.core.errors import InvariantBroken, TriptychError
from triptych.core.request import Request

MAX_PENDING_DELTAS = 64
"""Deltas of one choice that wait for a slow reader; then its stream pauses."""


class Place:
    """An admitted request's place: an ``answer.Ticket``."""

    def __init__(
        self,
        admission: Admission,
        admitted: Admitted,
        taken_s: float,
        on_release: Callable[[], None],
    ) -> None:
        self.taken_s = taken_s
        self._admission = admission
        self._admitted = admitted
        self._on_release = on_release

    def release(self) -> None:
        """Give the place back. Idempotent."""
        self._admission.release(self._admitted)
        self._on_release()


class Running:
    """A request between its arrival and its end."""

    def __init__(self, request: Request, ticket: Ticket) -> None:
        self.request = request
        self.ticket = ticket
        self.arrival_s = ticket.taken_s
        """Before the body was read: what a client waits for is all inside."""
        self.expanded_s = ticket.taken_s
        self.right = Pass(request.slo)
        """To begin; until it passed the gate, one that nobody keeps."""
        self.trips: list[Trip] = []
        self.tasks: list[asyncio.Task[None]] = []
        """One per trip."""
        self._said: deque[Delta | None] = deque()
        """What the choices say; None is the end of one of them."""
        self._has_said = asyncio.Event()
        self.room = asyncio.Semaphore(MAX_PENDING_DELTAS * request.num_choices)
        self.error: TriptychError | None = None
        self.num_finished = 0
        """Choices whose last delta was given."""
        self.token_times_s: list[float] = []
        """Arrivals of the first choice's tokens: they make the request's latency."""

    def say(self, delta: Delta | None) -> None:
        """One choice says ``delta``, or (None) nothing more."""
        self._said.append(delta)
        self._has_said.set()

    async def deltas(self) -> AsyncGenerator[Delta, None]:
        """What the choices say, as it comes; the first error ends them all. No choice runs any
        more when this is left. Deltas of a choice that came since the last one was taken come as
        one: a reader that is behind costs less, and is told all the same."""
        num_open = len(self.tasks)
        try:
            while num_open:
                while not self._said:
                    self._has_said.clear()
                    await self._has_said.wait()
                delta = self._said.popleft()
                if delta is not None:
                    yield self._with_more(delta)
                    continue
                num_open -= 1
                if self.error is not None:
                    raise self.error
                if self.num_finished + num_open < len(self.tasks):
                    raise InvariantBroken("a choice ended without an end")
        finally:
            await self._leave()

    async def end(self, error: TriptychError) -> None:
        """Stop every choice and wait until it left its jobs, whether anybody reads or not. The
        first error given is the request's; the reader meets it next, not what was still queued."""
        self.error = self.error or error
        self._said.clear()
        self.say(None)
        await self._leave()

    def _with_more(self, delta: Delta) -> Delta:
        """It and what the same choice has said right behind it."""
        said, some = self._said, [delta]
        while said and (more := said[0]) is not None and more.choice == delta.choice:
            some.append(more)
            said.popleft()
        for _ in some:
            self.room.release()
        return delta if len(some) == 1 else merged(some)

    async def _leave(self) -> None:
        """Stop every choice and wait for it."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
