"""The path of a request as a door sees it: admission, expansion, choices, text, record.

Implements ``answer.Service``. Around the journey and only around it: ledger, metrics, and one
``finally`` that gives the ticket back. Knows tokens and text; knows no block and no wire.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from functools import partial

import msgspec

from router.answer import Delta, Final, Ticket, Timeline, Usage
from router.asked import asked
from router.fleet_watch import Answer, FleetWatch
from router.gate import Gate, Pass
from router.journey import Stages, Trip, journey
from router.knowledge import PromptKeys
from router.metrics import RouterMetrics
from router.running import Place, Running
from router.text import ChoiceText, Spelling
from scheduler.admission import Admission
from scheduler.planner.demand import Shape
from triptych.core.config import Config
from triptych.core.errors import (
    Cancelled,
    DeadlineExceeded,
    InvariantBroken,
    Overloaded,
    RequestError,
    TriptychError,
    Unavailable,
)
from triptych.core.event import Timing
from triptych.core.hashing import tenant_salt
from triptych.core.ids import RequestId, TenantId
from triptych.core.lifecycle import RequestState, Stage
from triptych.core.metrics import Latency, is_attained, latency
from triptych.core.request import Prompt, Request, Slo
from triptych.core.topology import name as role_name
from triptych.inputs.model_card import ModelCard
from triptych.inputs.prompts import Prompts

log = logging.getLogger(__name__)

Words = Callable[[int, tuple[str, ...]], Spelling]
"""Text of a choice, by its number and the request's stop strings."""


class RequestService:
    """Runs requests. One per router; used by both doors on one event loop."""

    def __init__(self, config: Config, card: ModelCard, prompts: Prompts, stages: Stages,
                 admitting: tuple[Admission, Gate | None], secret: bytes) -> None:  # fmt: skip
        self.model = config.model.name or card.name
        self.prompts = prompts
        self.words: Words = partial(ChoiceText, prompts.tokenizer)
        self._stages = stages
        self._admission, self._gate = admitting
        self._secret = secret
        self._metrics = RouterMetrics()
        self._running: dict[RequestId, Running] = {}
        self._max_positions = self._max_tokens = card.max_positions
        self._longest()
        self._released = asyncio.Event()
        self._threads = ThreadPoolExecutor(1, "expand")
        self._is_refusing = False
        self.watch: FleetWatch | None = None
        """Hears of arrivals and answers."""

    def admit(self, tenant: TenantId) -> Ticket:
        """Take a ticket before reading a body; raises Overloaded at once when there is none, and
        Unavailable when the router is stopping."""
        try:
            if self._is_refusing:
                raise Unavailable("the router is stopping")
            admitted, now_s = self._admission.take(tenant), self._stages.clock.now()
            return Place(self._admission, admitted, now_s, self._released.set)
        except TriptychError as error:
            self._reject(error)
            raise

    @property
    def is_choosy(self) -> bool:
        """See ``answer.Service``."""
        return self._gate is not None

    def check(self, tenant: TenantId, slo: Slo, ticket: Ticket) -> None:
        """Raise Overloaded if no request with these bounds could be let in now; see
        ``answer.Service``. Counted as every refusal."""
        try:
            if self._gate is not None:
                self._gate.check(tenant, slo, ticket.taken_s)
        except Overloaded as error:
            self._reject(error)
            raise

    async def generate(
        self, request: Request, ticket: Ticket
    ) -> AsyncGenerator[Delta | Final, None]:
        """Run the request; see ``answer.Service``."""
        running = Running(request, ticket)
        try:
            prompt = await self._expand(running)
            running.right = await self._enter(running, prompt)
            async with aclosing(self._accepted(running, prompt)) as answer:
                async for part in answer:
                    yield part
        finally:
            running.right.ended(sum(len(trip.tokens) for trip in running.trips))
            ticket.release()

    async def cancel(self, request: RequestId, tenant: TenantId) -> bool:
        """End a running request of the same tenant; whether there was one."""
        running = self._running.get(request)
        if running is None or running.request.tenant != tenant:
            return self._gate is not None and self._gate.cancel(request, tenant, Cancelled())
        await self._end(running, Cancelled())
        await self._stages.dispatcher.settle()
        return True

    def refuse(self) -> None:
        """Take no new request from now on; ``is_ready`` says no."""
        self._is_refusing = True

    def is_ready(self) -> bool:
        """Whether every stage has an instance that serves, and requests are taken."""
        if self._is_refusing:
            return False
        view = self._stages.dispatcher.view()
        return all(view.serving(stage) for stage in Stage)

    def metrics(self) -> bytes:
        """Prometheus text exposition of the router and of what it knows of the instances."""
        roles = Counter(
            role_name(frozenset(view.description.role))
            for view in self._stages.dispatcher.view().instances
        )
        knowledge = self._stages.knowledge
        self._metrics.predicted(knowledge.forecast.errors())
        self._metrics.waiting(0 if self._gate is None else self._gate.num_waiting)
        num_open, num_failovers = self._stages.ledger.num_open, knowledge.latencies.num_failovers
        return self._metrics.exposition(num_open, roles, num_failovers)

    async def drain(self, timeout_s: float) -> bool:
        """Wait until every admitted request is answered; end what is left. Whether nothing had to
        be ended."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._admission.num_taken:
                    self._released.clear()
                    await self._released.wait()
        except TimeoutError:
            stopping = Cancelled(public="the server is stopping")
            if self._gate is not None:
                self._gate.close()
            left = list(self._running.values())
            await asyncio.gather(*(self._end(running, stopping) for running in left))
            return False
        finally:
            await self._stages.dispatcher.settle()
        return True

    def close(self) -> None:
        """Stop the expansion thread and the ledger's file."""
        self._threads.shutdown(wait=True)
        self._stages.ledger.shut()

    async def _expand(self, running: Running) -> Prompt:
        """Template, tokenise, count placeholders: before the request is accepted."""
        request = running.request
        salt = tenant_salt(self._secret, request.tenant)
        loop = asyncio.get_running_loop()
        try:
            if self._gate is not None:
                self._gate.check(request.tenant, request.slo, running.arrival_s)
            async with asyncio.timeout_at(request.deadline_s):
                prompt = await loop.run_in_executor(
                    self._threads, self.prompts.expand, request.messages, request.pictures, salt
                )
            self._check_length(prompt)
        except TimeoutError:
            self._reject(DeadlineExceeded())
            raise DeadlineExceeded from None
        except TriptychError as error:
            self._reject(error)
            raise
        running.expanded_s = self._stages.clock.now()
        return prompt

    async def _enter(self, running: Running, prompt: Prompt) -> Pass:
        """Wait for the request's turn, where there are turns."""
        request, gate = running.request, self._gate
        if gate is None:
            return running.right
        knowledge, view = self._stages.knowledge, self._stages.dispatcher.view()
        keys = PromptKeys(prompt, tenant_salt(self._secret, request.tenant))
        known = knowledge.coverage(prompt, keys, view)
        try:
            work = knowledge.work(request, prompt, known)
            return await gate.enter(request, running.arrival_s, work)
        except TriptychError as error:
            self._reject(error)
            raise

    def _check_length(self, prompt: Prompt) -> None:
        limit = self._longest()
        if len(prompt) >= limit:
            raise RequestError(
                f"the prompt has {len(prompt)} tokens; at most {limit - 1} fit",
                field="messages",
            )

    def _longest(self) -> int:
        """Longest sequence that every decode instance takes; while there is none, what those took
        that were there before: so will their replacements."""
        if serving := self._stages.dispatcher.view().serving(Stage.DECODE):
            longest = min(view.description.max_tokens for view in serving)
            self._max_tokens = min(self._max_positions, longest)
        return self._max_tokens

    async def _accepted(
        self, running: Running, prompt: Prompt
    ) -> AsyncGenerator[Delta | Final, None]:
        """From ACCEPTED to the one terminal state."""
        request = running.request
        if request.id in self._running:
            raise RequestError("a request of this id is running", field="id")
        trips = running.trips = self._trips(running, prompt)
        ledger = self._stages.ledger
        shape = asked(trips[0], running.arrival_s) if ledger.path else None
        ledger.accept(request.id, request.tenant, shape)
        self._running[request.id] = running
        if self.watch is not None:
            self.watch.arrived(prompt, request.slo)
        expiry = asyncio.create_task(self._expire(running))
        try:
            running.tasks = [asyncio.create_task(self._choice(running, trip)) for trip in trips]
            async with aclosing(running.deltas()) as deltas:
                async for delta in deltas:
                    yield delta
            final = self._final(running)
            self._record(running, RequestState.COMPLETED)
            yield final
        except TriptychError as error:
            self._record(running, _end_of(error), error.code)
            raise
        finally:
            expiry.cancel()
            self._record(running, RequestState.CANCELLED, Cancelled.code)

    async def _expire(self, running: Running) -> None:
        """End the request at its deadline, even if nobody reads what it says."""
        await asyncio.sleep(running.request.deadline_s - self._stages.clock.now())
        await self._end(running, DeadlineExceeded())

    async def _end(self, running: Running, error: TriptychError) -> None:
        """End a request in the middle: its jobs, its record, its place."""
        await running.end(error)
        self._record(running, _end_of(error), error.code)
        running.ticket.release()

    def _record(self, running: Running, state: RequestState, code: str = "") -> None:
        """The terminal state, once: the first who knows it is believed."""
        request, trips = running.request.id, running.trips
        if self._running.get(request) is not running:
            return
        del self._running[request]
        num_tokens = sum(len(trip.tokens) for trip in trips)
        cached = trips[0].timings.get("prefill", trips[0].timings.get("decode", Timing()))
        self._stages.ledger.close(request, state, code, num_tokens, cached.cached_tokens)
        self._metrics.ended(f"{state.value}:{code}" if code else state.value)
        self._metrics.retried(sum(max(0, trip.attempts - 1) for trip in trips))
        for trip in trips:
            self._metrics.tallied(trip.tally)
        if self.watch is not None and trips and state is not RequestState.COMPLETED:
            self.watch.answered(Answer(running.request.slo.name, False, _route(trips[0])))

    def _trips(self, running: Running, prompt: Prompt) -> list[Trip]:
        """One trip per choice; output cut to what fits behind the prompt."""
        request, room = running.request, self._longest() - len(prompt)
        stop = msgspec.structs.replace(request.stop, max_tokens=min(request.stop.max_tokens, room))
        request = msgspec.structs.replace(request, stop=stop, slo=running.right.slo)
        salt = tenant_salt(self._secret, request.tenant)
        trips = [
            Trip(request, prompt, choice, salt, running.arrival_s)
            for choice in range(request.num_choices)
        ]
        for trip in trips:
            trip.expected, trip.on_sent = running.right.expected, running.right.begun
        return trips

    async def _choice(self, running: Running, trip: Trip) -> None:
        """Turn one choice's tokens into deltas."""
        text = self.words(trip.choice, running.request.stop.strings)
        try:
            async with aclosing(journey(trip, self._stages)) as tokens:
                async for some in tokens:
                    await running.room.acquire()
                    delta = text.push(some)
                    if trip.choice == 0:
                        now_s = self._stages.clock.now()
                        running.token_times_s += [now_s] * len(delta.tokens)
                    running.say(delta)
                    if text.is_stopped:
                        del trip.tokens[len(trip.tokens) - len(some) + len(delta.tokens) :]
                        break
            running.say(text.finish(trip.reason))
            running.num_finished += 1
        except TriptychError as error:
            running.error = running.error or error
        except Exception as error:
            # The last guard: a bug ends this request with a typed error and is seen in the log.
            log.exception("%s failed", running.request.id)
            running.error = running.error or InvariantBroken(repr(error))
        finally:
            running.say(None)

    def _final(self, running: Running) -> Final:
        """Usage and timeline, and the same into the metrics."""
        trips, trip, now_s = running.trips, running.trips[0], self._stages.clock.now()
        prefill, decode = trip.timings.get("prefill"), trip.timings.get("decode", Timing())
        first = prefill or decode
        seen = latency(running.arrival_s, running.token_times_s or [now_s])
        usage = Usage(
            prompt_tokens=len(trip.prompt),
            completion_tokens=sum(len(each.tokens) for each in trips),
            image_tokens=sum(item.num_tokens for item in trip.prompt.items),
            cached_tokens=min(first.cached_tokens, len(trip.prompt)),
        )
        encode = trip.timings.get("encode", Timing())
        timeline = Timeline(
            queue_s=running.expanded_s - running.arrival_s + encode.queue_s + first.queue_s,
            encode_s=encode.compute_s,
            encode_transfer_s=first.transfer_s,
            prefill_s=first.prefill_s,
            kv_transfer_s=decode.transfer_s if prefill else 0.0,
            ttft_s=seen.ttft_s,
            tpot_s=seen.tpot_s,
            total_s=now_s - running.arrival_s,
            attempts=trip.attempts,
            route=_route(trip),
            is_degraded=running.right.is_degraded,
        )
        self._observe(running.request, seen, usage, timeline)
        if self.watch is not None:
            sizes = tuple(item.num_tokens for item in trip.prompt.items)
            output = max(1, len(trip.tokens))
            slo = running.request.slo
            shape = Shape(sizes, max(1, len(trip.prompt)), output, usage.cached_tokens, slo.name)
            self.watch.answered(Answer(slo.name, is_attained(seen, slo), timeline.route, shape))
        return Final(usage, timeline)

    def _observe(self, request: Request, seen: Latency, usage: Usage, timeline: Timeline) -> None:
        parts = ("queue", "encode", "encode_transfer", "prefill", "kv_transfer", "total")
        self._metrics.completed(
            seen,
            request.slo,
            {part: getattr(timeline, f"{part}_s") for part in parts},
            {
                "prompt": usage.prompt_tokens,
                "output": usage.completion_tokens,
                "image": usage.image_tokens,
                "cached": usage.cached_tokens,
            },
        )

    def _reject(self, error: TriptychError) -> None:
        self._stages.ledger.reject(error.code)
        self._metrics.ended(f"rejected:{error.code}")


def _end_of(error: TriptychError) -> RequestState:
    """The terminal state of a request that ``error`` ended."""
    if isinstance(error, DeadlineExceeded):
        return RequestState.DEADLINE_EXCEEDED
    return RequestState.CANCELLED if isinstance(error, Cancelled) else RequestState.FAILED


def _route(trip: Trip) -> tuple[str, ...]:
    if trip.route is None:
        return ()
    stages = (*trip.route.encode, trip.route.prefill, trip.route.decode)
    return tuple(dict.fromkeys(stage for stage in stages if stage is not None))
