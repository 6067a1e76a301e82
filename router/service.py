"""The path of a request as a door sees it: admission, expansion, choices, text, record.

Implements ``answer.Service``. Around the journey and only around it: ledger, metrics, and one
``finally`` that gives the ticket back. Knows tokens and text; knows no block and no wire.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing

import msgspec

from router.answer import Delta, Final, Ticket, Timeline, Usage
from router.journey import Stages, Trip, journey
from router.metrics import RouterMetrics
from router.text import ChoiceText
from scheduler.admission import Admission
from scheduler.admission import Ticket as Admitted
from triptych.core.config import Config
from triptych.core.errors import (
    Cancelled,
    DeadlineExceeded,
    InvariantBroken,
    RequestError,
    TriptychError,
    Unavailable,
)
from triptych.core.event import Timing
from triptych.core.hashing import tenant_salt
from triptych.core.ids import RequestId, TenantId
from triptych.core.lifecycle import RequestState, Stage
from triptych.core.metrics import Latency, latency
from triptych.core.request import Prompt, Request
from triptych.core.topology import name as role_name
from triptych.inputs.model_card import ModelCard
from triptych.inputs.prompts import PromptBuilder

log = logging.getLogger(__name__)

MAX_PENDING_DELTAS = 64
"""Deltas of one choice that wait for a slow reader; then its stream pauses."""


class _Ticket:
    """An admitted request's place."""

    def __init__(self, admission: Admission, admitted: Admitted) -> None:
        self._admission = admission
        self._admitted = admitted

    def release(self) -> None:
        """Give the place back. Idempotent."""
        self._admission.release(self._admitted)


class _Running:
    """One request in flight: its choices' tasks and what they have to say."""

    def __init__(self, request: Request, arrival_s: float) -> None:
        self.request = request
        self.arrival_s = arrival_s
        self.expanded_s = arrival_s
        self.queue: asyncio.Queue[Delta | None] = asyncio.Queue()
        self.room = asyncio.Semaphore(MAX_PENDING_DELTAS * request.num_choices)
        self.tasks: list[asyncio.Task[None]] = []
        self.error: TriptychError | None = None
        self.num_finished = 0
        """Choices whose last delta was given."""
        self.token_times_s: list[float] = []
        """Arrivals of the first choice's tokens: they make the request's latency."""

    def end(self, error: TriptychError) -> None:
        """Stop every choice; the first error given is the request's."""
        self.error = self.error or error
        for task in self.tasks:
            task.cancel()


class RequestService:
    """Runs requests. One per router; used by both doors on one event loop."""

    def __init__(self, config: Config, card: ModelCard, prompts: PromptBuilder, stages: Stages,
                 admission: Admission, secret: bytes) -> None:  # fmt: skip
        self.model = config.model.name or card.name
        self._card = card
        self.prompts = prompts
        self._stages = stages
        self._admission = admission
        self._secret = secret
        self._metrics = RouterMetrics()
        self._running: dict[RequestId, _Running] = {}
        self._threads = ThreadPoolExecutor(1, "expand")
        self._is_refusing = False

    def admit(self, tenant: TenantId) -> Ticket:
        """Take a ticket before reading a body; raises Overloaded at once when there is none, and
        Unavailable when the router is stopping."""
        try:
            if self._is_refusing:
                raise Unavailable("the router is stopping")
            return _Ticket(self._admission, self._admission.take(tenant))
        except TriptychError as error:
            self._reject(error)
            raise

    async def generate(
        self, request: Request, ticket: Ticket
    ) -> AsyncGenerator[Delta | Final, None]:
        """Run the request; see ``answer.Service``."""
        running = _Running(request, self._stages.clock.now())
        try:
            prompt = await self._expand(running)
            async with aclosing(self._accepted(running, prompt)) as answer:
                async for part in answer:
                    yield part
        finally:
            ticket.release()

    async def cancel(self, request: RequestId, tenant: TenantId) -> bool:
        """End a running request of the same tenant; whether there was one."""
        running = self._running.get(request)
        if running is None or running.request.tenant != tenant:
            return False
        running.end(Cancelled())
        await asyncio.gather(*running.tasks, return_exceptions=True)
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
        return self._metrics.exposition(self._stages.ledger.num_open, roles)

    async def drain(self, timeout_s: float) -> bool:
        """Wait for running requests; end what is left. Whether nothing had to be ended."""
        tasks = [task for running in self._running.values() for task in running.tasks]
        if tasks:
            await asyncio.wait(tasks, timeout=timeout_s)
        left = list(self._running.values())
        for running in left:
            running.end(Cancelled(public="the server is stopping"))
        await self._stages.dispatcher.settle()
        return not left

    def close(self) -> None:
        """Stop the expansion thread and the ledger's file."""
        self._threads.shutdown(wait=True)
        self._stages.ledger.shut()

    async def _expand(self, running: _Running) -> Prompt:
        """Template, tokenise, count placeholders: before the request is accepted."""
        request = running.request
        salt = tenant_salt(self._secret, request.tenant)
        loop = asyncio.get_running_loop()
        try:
            prompt = await loop.run_in_executor(
                self._threads, self.prompts.expand, request.messages, request.pictures, salt
            )
            self._check_length(prompt)
        except TriptychError as error:
            self._reject(error)
            raise
        running.expanded_s = self._stages.clock.now()
        return prompt

    def _check_length(self, prompt: Prompt) -> None:
        limit = self._longest()
        if len(prompt) >= limit:
            raise RequestError(
                f"the prompt has {len(prompt)} tokens; at most {limit - 1} fit",
                field="messages",
            )

    def _longest(self) -> int:
        """Longest sequence that every decode instance takes."""
        serving = self._stages.dispatcher.view().serving(Stage.DECODE)
        return min([self._card.max_positions, *(view.description.max_tokens for view in serving)])

    async def _accepted(
        self, running: _Running, prompt: Prompt
    ) -> AsyncGenerator[Delta | Final, None]:
        """From ACCEPTED to the one terminal state."""
        request, ledger = running.request, self._stages.ledger
        if request.id in self._running:
            raise RequestError("a request of this id is running", field="id")
        trips = self._trips(request, prompt)
        ledger.accept(request.id, request.tenant)
        self._running[request.id] = running
        state, code = RequestState.CANCELLED, Cancelled.code
        try:
            async with aclosing(self._merge(running, trips)) as deltas:
                async for delta in deltas:
                    yield delta
            state, code = RequestState.COMPLETED, ""
            yield self._final(running, trips)
        except DeadlineExceeded as error:
            state, code = RequestState.DEADLINE_EXCEEDED, error.code
            raise
        except Cancelled:
            raise
        except TriptychError as error:
            state, code = RequestState.FAILED, error.code
            raise
        finally:
            del self._running[request.id]
            ledger.close(request.id, state, code, sum(len(trip.tokens) for trip in trips))
            self._metrics.ended(f"{state.value}:{code}" if code else state.value)
            self._metrics.retried(sum(max(0, trip.attempts - 1) for trip in trips))

    def _trips(self, request: Request, prompt: Prompt) -> list[Trip]:
        """One trip per choice; output cut to what fits behind the prompt."""
        room = self._longest() - len(prompt)
        stop = msgspec.structs.replace(request.stop, max_tokens=min(request.stop.max_tokens, room))
        request = msgspec.structs.replace(request, stop=stop)
        salt = tenant_salt(self._secret, request.tenant)
        return [Trip(request, prompt, choice, salt) for choice in range(request.num_choices)]

    async def _merge(self, running: _Running, trips: list[Trip]) -> AsyncGenerator[Delta, None]:
        """Deltas of all choices as they come; the first error ends them all."""
        running.tasks = [asyncio.create_task(self._choice(running, trip)) for trip in trips]
        num_open = len(trips)
        try:
            while num_open:
                delta = await running.queue.get()
                if delta is not None:
                    running.room.release()
                    yield delta
                    continue
                num_open -= 1
                if running.error is not None:
                    raise running.error
                if running.num_finished + num_open < len(trips):
                    raise InvariantBroken("a choice ended without an end")
        finally:
            for task in running.tasks:
                task.cancel()
            await asyncio.gather(*running.tasks, return_exceptions=True)

    async def _choice(self, running: _Running, trip: Trip) -> None:
        """Turn one choice's tokens into deltas."""
        text = ChoiceText(self.prompts.tokenizer, trip.choice, running.request.stop.strings)
        try:
            async with aclosing(journey(trip, self._stages)) as tokens:
                async for token in tokens:
                    if trip.choice == 0:
                        running.token_times_s.append(self._stages.clock.now())
                    await running.room.acquire()
                    running.queue.put_nowait(text.push(token))
                    if text.is_stopped:
                        break
            running.queue.put_nowait(text.finish(trip.reason))
            running.num_finished += 1
        except TriptychError as error:
            running.error = running.error or error
        except Exception as error:
            # The last guard: a bug ends this request with a typed error and is seen in the log.
            log.exception("%s failed", running.request.id)
            running.error = running.error or InvariantBroken(repr(error))
        finally:
            running.queue.put_nowait(None)

    def _final(self, running: _Running, trips: list[Trip]) -> Final:
        """Usage and timeline, and the same into the metrics."""
        trip, now_s = trips[0], self._stages.clock.now()
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
        )
        self._observe(running.request, seen, usage, timeline)
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


def _route(trip: Trip) -> tuple[str, ...]:
    if trip.route is None:
        return ()
    stages = (*trip.route.encode, trip.route.prefill, trip.route.decode)
    return tuple(dict.fromkeys(stages))
