"""The prefill stage of one instance: a prompt in, its KV offered block by block, a first token out.

Blocks are offered under the job's ``publish`` handle from the start and append themselves as the
engine fills them, so decode receives them while prefill goes on. They stay the job's until the
offer's lease is over. Knows neither gRPC nor Ray nor tensors.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any

import msgspec

from kvtransfer.intake import Intake
from kvtransfer.offer import Offer
from kvtransfer.prefixes import Expected, Place, Prefixes
from kvtransfer.promises import Promises
from prefill_service.layers import OnLayers, Stretch, announce
from triptych.cache.embeddings import EmbeddingCache, Entry
from triptych.core.clock import Clock
from triptych.core.errors import (
    Cancelled,
    InvariantBroken,
    StaleCache,
    TransferError,
    TriptychError,
)
from triptych.core.event import Event, Failed, Finished, Token, Tokens
from triptych.core.handoff import FirstToken, LanguageJob
from triptych.core.ids import BlockId, Handle, JobId, SessionId
from triptych.core.plan import LanguagePlan
from triptych.core.ports import BlockMemory
from triptych.engine.language import LanguageEngine
from triptych.engine.outcome import Advanced, Drew, Dropped, Ended, Outcome, Reserved, Starved

log = logging.getLogger(__name__)


class _Work:
    """One job from its acceptance until nothing of it is held."""

    def __init__(self, job: LanguageJob, publish: Handle) -> None:
        self.job = job
        self.publish = publish
        self.offer: Offer | None = None
        self.tasks: list[asyncio.Task[None]] = []
        """Bringing pictures or a prefix: whatever writes into memory for this job."""
        self.expected = Expected(job.items)
        self.entries: list[Entry] = []
        """Embeddings held for the engine."""
        self.blocks: tuple[BlockId, ...] = ()
        self.blame = ""
        self.is_over = False
        """The engine has said its last word."""
        self.is_released = False
        """No taker can read the blocks any more."""
        self.gone = asyncio.Event()

    @property
    def num_tokens(self) -> int:
        """Tokens that the finished transfer covers."""
        return len(self.job.prompt) + len(self.job.generated)


class PrefillService:
    """Prefill jobs of one instance. One event loop."""

    def __init__(
        self,
        engine: LanguageEngine,
        memory: BlockMemory,
        outbox: Promises,
        sources: tuple[Intake, EmbeddingCache, Prefixes],
        clock: Clock,
        wake: Callable[[], None],
        emit: Callable[[Event], None],
    ) -> None:
        """``sources`` bring embeddings, take them back, and bring KV of prefixes; ``wake`` tells
        the engine's pump that there is something to do, ``emit`` tells the job's session."""
        self._engine = engine
        self._memory = memory
        self._outbox = outbox
        self._intake, self._embeddings, self._prefixes = sources
        self._clock = clock
        self._wake = wake
        self._emit = emit
        self._message_bytes = outbox.config.message_bytes
        self._works: dict[JobId, _Work] = {}

    def submit(self, job: LanguageJob) -> None:
        """Accept a job. Raises what the engine refuses it with; idempotent by id."""
        if job.header.id in self._works:
            return
        if job.publish is None:
            raise InvariantBroken("a prefill job publishes")
        self._engine.submit(job, self._clock.now(), has_places=not job.items)
        work = self._works[job.header.id] = _Work(job, job.publish)
        work.offer = self._outbox.offer(
            job.publish,
            job.header.epoch,
            self._memory,
            job.header.id,
            partial(self._released, work),
        )
        if job.items:
            self._start(work, self._bring(work), "bring")
        self._wake()

    def handle(self, outcome: Outcome) -> bool:
        """Take an outcome of the engine; False if it is of no job of this service."""
        if isinstance(outcome, Starved):
            self._relieve([self._works[job] for job in outcome.waiting if job in self._works])
            return True
        work = self._works.get(outcome.job)
        if work is None or work.offer is None:
            return False
        match outcome:
            case Reserved(_, blocks, hit_tokens, awaited_tokens):
                work.blocks = blocks
                self._offer(work, hit_tokens // self._memory.layout.block_size)
                if awaited_tokens > hit_tokens:
                    place = Place(blocks, hit_tokens, awaited_tokens)
                    self._start(work, self._bring_prefix(work, place), "prefix")
                else:
                    self._has_kv(work, hit_tokens)
            case Advanced(_, computed):
                self._offer(work, computed // self._memory.layout.block_size)
            case Drew(job_id, token):
                self._emit(Tokens(job_id, (token,)))
                self._complete(work, token)
            case Ended(job_id, reason, timing):
                self._emit(Finished(job_id, reason, timing))
                self._over(work)
            case Dropped(job_id, code, detail):
                work.offer.fail(code, detail)
                self._emit(Failed(job_id, code, detail, work.blame))
                for task in work.tasks:
                    task.cancel()
                self._over(work)
        return True

    def watch(self, plan: LanguagePlan) -> OnLayers | None:
        """What is to be called while ``plan`` is computed, so that the blocks that it fills are
        offered layer by layer; None if it fills none. Called before the step."""
        ends = {segment.job: segment for segment in plan.segments if segment.job in self._works}
        stretches = []
        for job, segment in ends.items():  # the last segment of each job
            work, size = self._works[job], self._memory.layout.block_size
            # The block behind a drawn token is not full, but nothing is written to it any more.
            end = segment.end // size if segment.draw is None else -(-segment.end // size)
            if work.offer is not None and end > work.offer.num_blocks:
                stretches.append(Stretch(work.offer, work.blocks[work.offer.num_blocks : end]))
        return announce(stretches, self._memory, self._message_bytes) if stretches else None

    async def cancel(self, job: JobId) -> None:
        """End a job; returns when it holds nothing. Unknown ids are fine."""
        work = self._works.get(job)
        if work is None:
            return
        for task in work.tasks:
            task.cancel()
        if work.tasks:
            await asyncio.wait(work.tasks)
        await self._outbox.withdraw(work.publish)
        self._engine.cancel(job)
        self._wake()
        await work.gone.wait()

    def jobs(self) -> dict[JobId, SessionId]:
        """Jobs that hold something, leases included, and their sessions."""
        return {job: work.job.header.session for job, work in self._works.items()}

    def _relieve(self, works: Sequence[_Work]) -> None:
        """Prompts have no room: make some for those that takers wait for."""
        awaited = self._outbox.relieve(self._memory, [work.publish for work in works])
        self._engine.prefer([work.job.header.id for work in works if work.publish in awaited])
        self._wake()

    def _offer(self, work: _Work, num_blocks: int) -> None:
        """Offer the first ``num_blocks`` of the sequence, which are written and will not change."""
        if work.offer is not None and num_blocks > work.offer.num_blocks:
            written = work.blocks[work.offer.num_blocks : num_blocks]
            self._memory.stage(written)
            work.offer.append(written)

    def _complete(self, work: _Work, token: Token) -> None:
        """The first token is drawn: offer the last block, full or not, and the token behind it."""
        self._offer(work, self._memory.layout.num_blocks(work.num_tokens))
        if work.offer is not None:
            first = FirstToken(token.id, token.logprob, token.top)
            work.offer.finish(msgspec.msgpack.encode(first))

    def _start(self, work: _Work, coroutine: Coroutine[Any, Any, None], word: str) -> None:
        task = asyncio.create_task(coroutine, name=f"{word} {work.job.header.id}")
        task.add_done_callback(partial(self._is_over, work))
        work.tasks.append(task)

    def _is_over(self, work: _Work, task: asyncio.Task[None]) -> None:
        """Whatever writes for the job has ended, perhaps by what should not happen: then the job
        ends too, at once and not at its deadline."""
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log.error("%s failed", task.get_name(), exc_info=error)
            self._engine.fail(work.job.header.id, "internal", "a transfer failed unexpectedly")
            self._wake()
        self._settle(work)

    async def _bring_prefix(self, work: _Work, place: Place) -> None:
        """Bring KV from a lower tier or another instance; what does not come is computed."""
        job = work.job
        deadline_s = self._clock.now() + job.header.budget_s
        num_tokens = await self._prefixes.bring(job, place, deadline_s)
        num_tokens = self._engine.prefix_arrived(job.header.id, num_tokens)
        self._offer(work, num_tokens // self._memory.layout.block_size)
        self._has_kv(work, num_tokens)
        self._wake()

    def _has_kv(self, work: _Work, num_tokens: int) -> None:
        """The KV of so many tokens did not need to be computed."""
        work.expected.is_there(num_tokens)
        self._check_expected(work)

    def _check_expected(self, work: _Work) -> None:
        if work.expected.is_stale:
            self._engine.fail(work.job.header.id, StaleCache.code, "a picture is not cached")

    async def _bring(self, work: _Work) -> None:
        """Bring the job's pictures; each is computed with as soon as it is there."""
        header = work.job.header
        deadline_s = self._clock.now() + header.budget_s

        def on_ready(index: int, entry: Entry | None) -> None:
            if entry is None:
                work.expected.is_absent(index)
                self._check_expected(work)
                self._wake()
                return
            work.entries.append(entry)
            self._engine.item_ready(header.id, index, entry.blocks)
            self._wake()

        def on_places() -> None:
            self._engine.places_ready(header.id)
            self._wake()

        try:
            await self._intake.bring(work.job.items, deadline_s, on_places, on_ready, header.id)
        except TriptychError as error:
            work.blame = error.blame
            if isinstance(error, Cancelled):  # the encoder was told to stop, not we: a loss for us
                error = TransferError(str(error))
            self._engine.fail(header.id, error.code, str(error))
            self._wake()

    def _over(self, work: _Work) -> None:
        """The engine computes nothing more for the job. Pictures that a prefix hit made needless
        still come: their encoder keeps them for us until we took them."""
        if not any(one.ref for one in work.job.items):
            for task in work.tasks:
                task.cancel()
        work.is_over = True
        self._settle(work)

    def _released(self, work: _Work, reason: str) -> None:
        """The lease is over. A job that is not over yet goes on until its router ends it."""
        log.debug("%s: lease %s", work.job.header.id, reason)
        work.is_released = True
        self._settle(work)

    def _settle(self, work: _Work) -> None:
        """Free what nobody needs any more: embeddings at once, blocks behind the lease."""
        if not work.is_over or not all(task.done() for task in work.tasks):
            return
        while work.entries:
            self._embeddings.release(work.entries.pop())
        if work.is_released and self._works.pop(work.job.header.id, None) is not None:
            self._prefixes.forget(work.job.header.id)
            self._engine.release(work.job.header.id)
            work.gone.set()
        self._wake()
