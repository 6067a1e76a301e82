"""THE path of a request: route, encode, prefill, decode, and what surrounds it.

One attempt is three kinds of job sent at once, tied together by promises. A lost instance, lost
bytes or a preemption begins the next attempt with the tokens that were already streamed, so the
client sees one gap-free stream. Knows no door, no wire and no text: tokens only.
"""

import asyncio
import secrets
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

import msgspec

from router.dispatch import Dispatcher
from router.due import Due, Way
from router.knowledge import Knowledge, PromptKeys
from router.ledger import Ledger
from router.lesson import Lesson
from scheduler.placement import NOTHING, Placement
from triptych.core.clock import Clock
from triptych.core.config_router import RouterConfig
from triptych.core.errors import (
    DeadlineExceeded,
    InvariantBroken,
    Overloaded,
    Preempted,
    StaleCache,
    TriptychError,
    Unavailable,
    from_code,
)
from triptych.core.event import Encoded, Failed, Finished, Timing, Token, Tokens
from triptych.core.handoff import (
    EncodeJob,
    Job,
    JobHeader,
    LanguageJob,
    LendJob,
    PromisedItem,
    TransferRef,
)
from triptych.core.ids import Handle, InstanceId, JobId
from triptych.core.lifecycle import RequestState
from triptych.core.request import ImagePart, Prompt, Request
from triptych.core.view import ClusterView, Description, Expected, Route

MAX_PREEMPTIONS = 32
"""Preemptions are load, not faults: they do not count as failed attempts, but end somewhere."""
SUSPECT_GRACE_S = 1.0
"""A dead instance is noticed within this by its broken connection."""


class Stages:
    """What a journey needs: where to, who listens, what is recorded."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        placing: tuple[Placement, Knowledge],
        ledger: Ledger,
        config: RouterConfig,
        clock: Clock,
    ) -> None:
        self.dispatcher = dispatcher
        placement, self.knowledge = placing
        self.place = placement.choose
        self.ledger = ledger
        self.config = config
        self.clock = clock


class Trip:
    """One choice of one request on its way: what it asked and what has come of it."""

    def __init__(
        self,
        request: Request,
        prompt: Prompt,
        choice: int,
        salt: bytes,
        arrival_s: float | None = None,
    ) -> None:
        """Without ``arrival_s`` there is no bound on the first token."""
        self.request = request
        self.due = Due(request, arrival_s)
        self.arrival_s = request.deadline_s if arrival_s is None else arrival_s
        self.prompt = prompt
        self.choice = choice
        self.salt = salt
        sampling = request.sampling
        self.pictures = tuple(
            request.pictures[part.index]
            for message in request.messages
            for part in message.parts
            if isinstance(part, ImagePart)
        )
        """In the order of the prompt's items."""
        self.sampling = msgspec.structs.replace(sampling, seed=(sampling.seed + choice) % 2**63)
        self.keys = PromptKeys(prompt, salt)
        self.tokens: list[int] = []
        self.reason = ""
        self.attempts = 0
        self.route: Route | None = None
        self.timings: dict[str, Timing] = {}
        """Of the last attempt: ``encode`` (the slowest item), ``prefill``, ``decode``."""
        self.tally: Counter[str] = Counter()
        """What was found and what encoded, over all attempts; names of ``router.metrics``."""
        self.expected: Expected | None = None
        """What was predicted when it was admitted, if it was by predictions."""
        self.on_sent: Callable[[], None] = _nothing
        """Called when its jobs are counted at their instances."""


async def journey(trip: Trip, stages: Stages) -> AsyncGenerator[Sequence[Token], None]:
    """Tokens of one choice as they come, each index once, in order; ``trip.reason`` is set behind
    the last.

    Raises the error that ended it; leaves no job behind on any exit.
    """
    avoid: set[InstanceId] = set()
    num_faults = num_preemptions = 0
    trusts = True
    while not _is_over(trip):
        trip.attempts += 1
        try:
            async with aclosing(_attempt(trip, stages, frozenset(avoid), trusts)) as tokens:
                async for some in tokens:
                    trip.tokens.extend(token.id for token in some)
                    trip.due.drew(stages.clock.now(), len(some))
                    yield some
        except Preempted:
            num_preemptions += 1
            if num_preemptions > MAX_PREEMPTIONS:
                raise
        except StaleCache:
            if not trusts:
                raise
            trusts = False
            trip.tally["stale"] += 1
        except TriptychError as error:
            num_faults += 1
            may_retry = error.is_retryable or isinstance(error, Overloaded)
            if not may_retry or num_faults >= stages.config.max_attempts:
                raise
            avoid.add(InstanceId(error.blame))
            await _pause(trip, stages, avoid, error)


def _is_over(trip: Trip) -> bool:
    """Whether the stop rule holds already: the stage that drew the last token may have been lost
    before it could say so."""
    if not trip.reason and trip.tokens:
        if trip.tokens[-1] in trip.request.stop.token_ids:
            trip.reason = "stop"
        elif len(trip.tokens) >= trip.request.stop.max_tokens:
            trip.reason = "length"
    return bool(trip.reason)


async def _attempt(
    trip: Trip, stages: Stages, avoid: frozenset[InstanceId], trusts: bool
) -> AsyncGenerator[Sequence[Token], None]:
    """Send every job of one attempt at once, then stream what the last stage draws. ``trusts``:
    whether to rely on what is said to be cached."""
    view = stages.dispatcher.view()
    known = stages.knowledge.coverage(trip.prompt, trip.keys, view) if trusts else NOTHING
    elapsed_s = stages.clock.now() - trip.arrival_s
    ask = stages.knowledge.ask(trip.request, trip.prompt, len(trip.tokens), elapsed_s)
    route = trip.route = stages.place(view, trip.prompt, avoid, known, ask)
    jobs = _jobs(trip, route, view, stages)
    lesson = Lesson(trip, stages.knowledge, stages.clock, jobs)
    lesson.routed(view, known)
    order = Order(len(trip.tokens))
    decode, reason = jobs[-1][1].header.id, ""
    progress = _Progress(trip, stages, sum(instance is not None for instance in route.encode))
    async with stages.dispatcher.scope() as scope:
        await scope.start(jobs, trip.request.deadline_s, route.cached_tokens)
        trip.on_sent()
        async with aclosing(scope.events(trip.request.deadline_s)) as events:
            async for instance, event in events:
                lesson.learn(instance, event)
                match event:
                    case _ if event.job == lesson.loan:
                        pass  # what is not lent is computed
                    case Tokens():
                        progress.reach(RequestState.DECODING)
                        if some := order.put(event.tokens):
                            yield some
                    case Encoded():
                        _note(trip, "encode", event.timing)
                        trip.tally["cached" if event.timing.cached_tokens else "computed"] += 1
                        progress.encoded()
                    case Finished() if event.job != decode:
                        _note(trip, "prefill", event.timing)
                    case Finished():
                        _note(trip, "decode", event.timing)
                        reason = event.reason
                    case Failed():
                        error = from_code(event.code, event.detail)
                        error.blame = event.blame or instance
                        raise error
                if reason and order.is_complete:
                    trip.reason = reason
                    trip.tally["overtaken"] += progress.num_items
                    return


class Order:
    """Puts tokens of two stages in order: decode's second may overtake prefill's first."""

    def __init__(self, start: int) -> None:
        self._start = start
        self._next = start
        self._early: dict[int, Token] = {}

    @property
    def is_complete(self) -> bool:
        """Whether no token waits for an earlier one, and at least the first has come."""
        return not self._early and self._next > self._start

    def put(self, tokens: tuple[Token, ...]) -> list[Token]:
        """Take tokens; give those whose turn it is. An index that was there before is a bug."""
        ready: list[Token] = []
        for token in tokens:
            if token.index < self._next or token.index in self._early:
                raise InvariantBroken(f"token {token.index} came twice")
            self._early[token.index] = token
        while (head := self._early.pop(self._next, None)) is not None:
            ready.append(head)
            self._next += 1
        return ready


def _jobs(
    trip: Trip, route: Route, view: ClusterView, stages: Stages
) -> list[tuple[InstanceId, Job]]:
    """The attempt's jobs, the producing ones first, the decode job last."""
    about = {instance.description.id: instance.description for instance in view.instances}
    epoch = trip.attempts - 1
    jobs: list[tuple[InstanceId, Job]] = []
    promised: list[PromisedItem] = []
    prefix: TransferRef | None = None
    stem = f"{trip.request.id}/{trip.choice}/{epoch}"
    way = Way(trip.prompt, route, about, stages.knowledge.latencies)

    def header(stage: str, later_s: float = 0.0) -> JobHeader:
        now_s = stages.clock.now()
        left_s, job = trip.request.deadline_s - now_s, JobId(f"{stem}/{stage}")
        due = trip.due.left(now_s)
        return JobHeader(job, stages.dispatcher.session, epoch, left_s, trip.salt, *due, later_s)

    if route.prefix is not None:
        lender, num_tokens = route.prefix.instance, route.prefix.num_tokens
        prefix = _promise(about[lender], "kv", epoch, num_tokens)
        beginning = _beginning(trip.prompt, num_tokens)
        jobs.append((lender, LendJob(header("lend"), beginning, prefix.handle)))
    for index, (item, instance) in enumerate(zip(trip.prompt.items, route.encode, strict=True)):
        if instance is None:
            promised.append(PromisedItem(item, None))
            continue
        embedding = _promise(about[instance], "embedding", epoch, item.num_tokens)
        picture = trip.pictures[index]
        head = header(f"encode{index}", way.behind_picture(instance, item))
        encode = EncodeJob(head, item, picture.data, picture.format, embedding.handle)
        jobs.append((instance, encode))
        promised.append(PromisedItem(item, embedding))
    work = LanguageJob(
        header=header("decode"),
        prompt=trip.prompt,
        sampling=trip.sampling,
        stop=trip.request.stop,
        generated=tuple(trip.tokens),
    )
    if route.prefill == route.decode:
        one = msgspec.structs.replace(work, items=tuple(promised), prefix=prefix)
        return [*jobs, (route.decode, one)]
    kv = _promise(about[route.prefill], "kv", epoch, len(trip.prompt) + len(trip.tokens))
    head = header("prefill", way.behind_prefill())
    prefill = msgspec.structs.replace(
        work, header=head, items=tuple(promised), publish=kv.handle, prefix=prefix
    )
    decode = msgspec.structs.replace(work, kv=kv)
    return [*jobs, (route.prefill, prefill), (route.decode, decode)]


def _beginning(prompt: Prompt, num_tokens: int) -> Prompt:
    """The first tokens of a prompt, with the pictures that are at least begun in them."""
    items = tuple(item for item in prompt.items if item.offset < num_tokens)
    return Prompt(prompt.token_ids[:num_tokens], items)


def _promise(producer: Description, kind: str, epoch: int, num_tokens: int) -> TransferRef:
    layout = producer.kv if kind == "kv" else producer.embedding
    if layout is None:
        raise InvariantBroken(f"{producer.id} was placed but has no {kind} blocks")
    return TransferRef(
        handle=Handle(secrets.token_hex(16)),
        epoch=epoch,
        instance=producer.id,
        endpoint=producer.transfer,
        layout=layout.fingerprint,
        num_tokens=num_tokens,
    )


class _Progress:
    """Tells the ledger how far an attempt is. A request's first choice speaks for all."""

    def __init__(self, trip: Trip, stages: Stages, num_items: int) -> None:
        self._trip = trip
        self._ledger = stages.ledger
        self.num_items = num_items
        """Whose encode job has not said yet that it is done: its news travels by itself, and the
        answer may overtake it."""
        self._state: RequestState | None = None
        self.reach(RequestState.ENCODING if num_items else RequestState.PREFILLING)

    def encoded(self) -> None:
        """One more item is encoded."""
        self.num_items -= 1
        if not self.num_items and self._state is RequestState.ENCODING:
            self.reach(RequestState.PREFILLING)

    def reach(self, state: RequestState) -> None:
        """The attempt came to ``state`` (perhaps long ago)."""
        if self._trip.choice == 0 and state is not self._state:
            self._state = state
            self._ledger.move(self._trip.request.id, state, self._trip.attempts - 1)


def _note(trip: Trip, stage: str, timing: Timing) -> None:
    """Keep a stage's timing; of several items the one that took longest."""
    before = trip.timings.get(stage, Timing())
    if stage != "encode" or _total(timing) >= _total(before):
        trip.timings[stage] = timing


def _total(timing: Timing) -> float:
    return timing.queue_s + timing.transfer_s + timing.compute_s


async def _pause(trip: Trip, stages: Stages, avoid: set[InstanceId], cause: TriptychError) -> None:
    """Before another attempt: wait for instances that are not under suspicion. A stage that nobody
    serves is waited for with patience; where suspects are all there is, only a moment, until their
    death would have been noticed. Nothing is waited for behind the deadline."""
    now_s, deadline_s = stages.clock.now(), trip.request.deadline_s
    grace_s = min(now_s + SUSPECT_GRACE_S, deadline_s)
    end_s = min(now_s + stages.config.patience_s, deadline_s)
    while True:
        stages.dispatcher.changed.clear()
        try:
            route = stages.place(stages.dispatcher.view(), trip.prompt, frozenset(avoid))
        except Unavailable:
            wait_until_s = end_s
        else:
            if avoid.isdisjoint(route.instances):
                return
            if isinstance(cause, Overloaded) and not trip.tokens:
                raise cause
            wait_until_s = grace_s
        try:
            async with asyncio.timeout_at(wait_until_s):
                await stages.dispatcher.changed.wait()
        except TimeoutError:
            if wait_until_s == deadline_s:
                raise DeadlineExceeded from None
            return


def _nothing() -> None:
    """Nobody waits for the jobs to be sent."""
