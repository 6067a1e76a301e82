"""A batch of requests without anybody waiting: in an order that shares, as many as memory takes.

Groups of prompts with a common beginning run one behind the other (``scheduler.grouping``), and the
window of requests in flight is bounded by the KV they need, not by their number (BatchLLM, arXiv
2412.03594, section 4.3). Knows requests and answers; no file and no terminal.
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from functools import partial

import msgspec

from router.answer import Delta, Final, Service
from scheduler.grouping import Group, Symbols, by_output, group, num_saved
from triptych.core.errors import Overloaded, TriptychError
from triptych.core.request import Prompt, Request

MAX_TRIES = 5
"""How often a request is begun that the system, not the request, made fail."""
PAUSE_S = 0.2
"""Before a request is begun again."""
FIRST_GUESS = 0.5
"""Share of ``max_tokens`` that an answer is expected to have before any has ended."""


class Task(msgspec.Struct, frozen=True):
    """One request of a batch. ``make`` gives the request anew, with its time running from then, so
    that pictures are in memory only while they are worked on."""

    number: int
    make: Callable[[], Request]
    prompt_len: int
    max_tokens: int


class Plan(msgspec.Struct, frozen=True):
    """The order of a batch and what it is good for."""

    groups: tuple[Group, ...]
    prompt_tokens: int
    shared_tokens: int
    """Prompt tokens that need not be computed again, if the cache keeps a group's beginning for as
    long as the group runs."""


class Outcome(msgspec.Struct, frozen=True):
    """How one request ended: with ``final``, or with ``error``."""

    number: int
    deltas: tuple[Delta, ...]
    final: Final | None
    error: TriptychError | None


def plan(prompts: Sequence[Prompt], max_tokens: Sequence[int], *, grouped: bool = True) -> Plan:
    """Groups in the order in which to run them; in the order given if not ``grouped``."""
    symbols = Symbols()
    sequences = [symbols.of(prompt) for prompt in prompts]
    lengths = [len(prompt) for prompt in prompts]
    groups = by_output(group(sequences), lengths, max_tokens)
    if not grouped:
        groups = [Group((index,), length) for index, length in enumerate(lengths)]
    return Plan(tuple(groups), sum(lengths), num_saved(groups))


class Window:
    """How many tokens of KV are in flight, a group's common beginning counted once."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._used = 0
        self._flying: Counter[int] = Counter()
        """Requests in flight by group."""
        self._outputs = self._allowed = 0
        """Of the answers so far: their tokens, and what they might have had."""

    @property
    def num_flying(self) -> int:
        """Requests in flight."""
        return self._flying.total()

    def need(self, task: Task, shared: int) -> int:
        """Tokens that ``task`` needs for itself, its answer as long as answers were so far."""
        share = self._outputs / self._allowed if self._allowed else FIRST_GUESS
        return task.prompt_len - shared + int(share * task.max_tokens) + 1

    def has_room(self, need: int, number: int, shared: int) -> bool:
        """Whether a request of group ``number`` fits now. One always does."""
        more = need + (0 if self._flying[number] else shared)
        return not self._flying.total() or self._used + more <= self._capacity

    def enter(self, need: int, number: int, shared: int) -> None:
        """A request of group ``number`` begins."""
        self._used += need + (0 if self._flying[number] else shared)
        self._flying[number] += 1

    def leave(self, need: int, number: int, shared: int) -> None:
        """It is over."""
        self._flying[number] -= 1
        self._used -= need + (0 if self._flying[number] else shared)

    def learn(self, num_tokens: int, max_tokens: int) -> None:
        """How long an answer became."""
        self._outputs += num_tokens
        self._allowed += max_tokens


class Claim(msgspec.Struct, frozen=True):
    """What a request in flight holds of the window."""

    need: int
    number: int
    """Of its group."""
    shared: int
    is_first: bool


class Queue:
    """Which request begins next: of every group one first, the others when its prompt is computed,
    so that they find the beginning in the cache instead of computing it beside each other."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self._groups = groups
        self._followers: dict[int, deque[int]] = {}
        """Members that may begin now, by number of the group, the oldest group first."""
        self._next = 0

    def peek(self) -> tuple[int, int] | None:
        """Group and task to begin next; None while all that are left wait for the first of their
        group, and at the end."""
        if self._followers:
            number = min(self._followers)
            return number, self._followers[number][0]
        if self._next < len(self._groups):
            return self._next, self._groups[self._next].members[0]
        return None

    def pop(self) -> None:
        """What ``peek`` gave has begun."""
        if not self._followers:
            self._next += 1
            return
        number = min(self._followers)
        self._followers[number].popleft()
        if not self._followers[number]:
            del self._followers[number]

    def is_computed(self, number: int) -> None:
        """The prompt of the group's first member is computed, or will never be; said once."""
        if members := self._groups[number].members[1:]:
            self._followers[number] = deque(members)


async def run(
    service: Service, tasks: Sequence[Task], groups: Sequence[Group], capacity: int
) -> AsyncGenerator[Outcome, None]:
    """Outcomes as they come, one per task. ``capacity`` is in tokens of KV; leaving early cancels
    what is in flight. Raises at once what a service raises that is no TriptychError."""
    window, queue = Window(capacity), Queue(groups)
    news: asyncio.Queue[tuple[Claim, asyncio.Task[Outcome] | None]] = asyncio.Queue()
    flights: set[asyncio.Task[Outcome]] = set()

    def fly(task: Task, claim: Claim) -> None:
        begun = partial(news.put_nowait, (claim, None)) if claim.is_first else _nothing
        flight = asyncio.create_task(_ask(service, task, begun))
        flights.add(flight)
        flight.add_done_callback(lambda flight: news.put_nowait((claim, flight)))

    def begin() -> None:
        while (head := queue.peek()) is not None:
            number, index = head
            shared = groups[number].shared
            claim = Claim(window.need(tasks[index], shared), number, shared,
                          index == groups[number].members[0])  # fmt: skip
            if not window.has_room(claim.need, number, shared):
                return
            queue.pop()
            window.enter(claim.need, number, shared)
            fly(tasks[index], claim)

    try:
        begin()
        while window.num_flying:
            claim, flight = await news.get()
            if flight is None:
                queue.is_computed(claim.number)
            else:
                flights.discard(flight)
                outcome = flight.result()
                window.leave(claim.need, claim.number, claim.shared)
                if outcome.final is not None:
                    max_tokens = tasks[outcome.number].max_tokens
                    window.learn(outcome.final.usage.completion_tokens, max_tokens)
                yield outcome
            begin()
    finally:
        for flight in flights:
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)


async def _ask(service: Service, task: Task, begun: Callable[[], None]) -> Outcome:
    """Run one request; what the system made fail is tried again. ``begun`` is called once, when the
    prompt is computed or the request is over."""
    tries = 0
    try:
        while True:
            tries += 1
            try:
                request = task.make()
                deltas: list[Delta] = []
                final: Final | None = None
                async with aclosing(
                    service.generate(request, service.admit(request.tenant))
                ) as answer:
                    async for part in answer:
                        if isinstance(part, Final):
                            final = part
                        else:
                            deltas.append(part)
                            begun()
                            begun = _nothing
                return Outcome(task.number, tuple(deltas), final, None)
            except TriptychError as error:
                may_retry = error.is_retryable or isinstance(error, Overloaded)
                if not may_retry or tries == MAX_TRIES:
                    return Outcome(task.number, (), None, error)
                await asyncio.sleep(PAUSE_S)
    finally:
        begun()


def _nothing() -> None:
    """Nobody waits for this request's prompt."""
