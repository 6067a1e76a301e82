"""The prefill stage of one instance: a prompt in, its KV offered block by block, a first token out.

Blocks are offered under the job's ``publish`` handle from the start and append themselves as the
engine fills them, so decode receives them while prefill goes on. They stay the job's until the
offer's lease is over. Knows neither gRPC nor Ray nor tensors.
"""

import asyncio
import logging
from collections.abc import Callable
from functools import partial

import msgspec

from kvtransfer.intake import Intake
from kvtransfer.offer import Offer
from kvtransfer.sender import Outbox
from prefill_service.layers import OnLayers, Stretch, announce
from triptych.cache.embeddings import EmbeddingCache, Entry
from triptych.core.clock import Clock
from triptych.core.errors import Cancelled, InvariantBroken, TransferError, TriptychError
from triptych.core.event import Event, Failed, Finished, Token, Tokens
from triptych.core.handoff import FirstToken, LanguageJob
from triptych.core.ids import BlockId, Handle, JobId, SessionId
from triptych.core.plan import LanguagePlan
from triptych.core.ports import BlockMemory
from triptych.engine.language import LanguageEngine
from triptych.engine.outcome import Advanced, Drew, Dropped, Ended, Outcome, Reserved

log = logging.getLogger(__name__)


class _Work:
    """One job from its acceptance until nothing of it is held."""

    def __init__(self, job: LanguageJob, publish: Handle) -> None:
        self.job = job
        self.publish = publish
        self.offer: Offer | None = None
        self.bringing: asyncio.Task[None] | None = None
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
        outbox: Outbox,
        pictures: tuple[Intake, EmbeddingCache],
        clock: Clock,
        wake: Callable[[], None],
        emit: Callable[[Event], None],
    ) -> None:
        """``pictures`` bring embeddings and take them back, ``wake`` tells the engine's pump that
        there is something to do, ``emit`` tells the job's session."""
        self._engine = engine
        self._memory = memory
        self._outbox = outbox
        self._intake, self._embeddings = pictures
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
        self._engine.submit(job, self._clock.now())
        work = self._works[job.header.id] = _Work(job, job.publish)
        work.offer = self._outbox.offer(
            job.publish,
            job.header.epoch,
            self._memory,
            job.header.id,
            partial(self._released, work),
        )
        if job.items:
            bringing = asyncio.create_task(self._bring(work), name=f"bring {job.header.id}")
            bringing.add_done_callback(lambda _: self._settle(work))
            work.bringing = bringing
        self._wake()

    def handle(self, outcome: Outcome) -> bool:
        """Take an outcome of the engine; False if it is of no job of this service."""
        work = self._works.get(outcome.job)
        if work is None or work.offer is None:
            return False
        match outcome:
            case Reserved(_, blocks, hit_tokens, _):
                work.blocks = blocks
                self._offer(work, hit_tokens // self._memory.layout.block_size)
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
                if work.bringing is not None:
                    work.bringing.cancel()
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
        if work.bringing is not None:
            work.bringing.cancel()
            await asyncio.wait([work.bringing])
        await self._outbox.withdraw(work.publish)
        self._engine.cancel(job)
        self._wake()
        await work.gone.wait()

    def jobs(self) -> dict[JobId, SessionId]:
        """Jobs that hold something, leases included, and their sessions."""
        return {job: work.job.header.session for job, work in self._works.items()}

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

    async def _bring(self, work: _Work) -> None:
        """Bring the job's pictures; each is computed with as soon as it is there."""
        header = work.job.header
        deadline_s = self._clock.now() + header.budget_s

        def on_ready(index: int, entry: Entry) -> None:
            work.entries.append(entry)
            self._engine.item_ready(header.id, index, entry.blocks)
            self._wake()

        try:
            await self._intake.bring(work.job.items, deadline_s, on_ready, header.id)
        except TriptychError as error:
            work.blame = error.blame
            if isinstance(error, Cancelled):  # the encoder was told to stop, not we: a loss for us
                error = TransferError(str(error))
            self._engine.fail(header.id, error.code, str(error))
            self._wake()

    def _over(self, work: _Work) -> None:
        """The engine computes nothing more for the job. Pictures that a prefix hit made needless
        still come: their encoder keeps them for us until we took them."""
        work.is_over = True
        self._settle(work)

    def _released(self, work: _Work, reason: str) -> None:
        """The lease is over. A job that is not over yet goes on until its router ends it."""
        log.debug("%s: lease %s", work.job.header.id, reason)
        work.is_released = True
        self._settle(work)

    def _settle(self, work: _Work) -> None:
        """Free what nobody needs any more: embeddings at once, blocks behind the lease."""
        if not work.is_over or (work.bringing is not None and not work.bringing.done()):
            return
        while work.entries:
            self._embeddings.release(work.entries.pop())
        if work.is_released and self._works.pop(work.job.header.id, None) is not None:
            self._engine.release(work.job.header.id)
            work.gone.set()
        self._wake()
