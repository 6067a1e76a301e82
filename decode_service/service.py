"""The decode stage of one instance: KV from a prefill instance (or computed here), tokens out.

Blocks are reserved when the job is admitted and filled while prefill still works on the prompt.
Knows neither gRPC nor Ray nor tensors.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import msgspec

from kvtransfer.fetching import Fetching
from kvtransfer.intake import Intake
from kvtransfer.prefixes import Expected, Place, Prefixes
from triptych.cache.embeddings import EmbeddingCache, Entry
from triptych.core.clock import Clock
from triptych.core.errors import Cancelled, StaleCache, TransferError, TriptychError
from triptych.core.event import Event, Failed, Finished, Token, Tokens
from triptych.core.handoff import FirstToken, LanguageJob, TransferRef
from triptych.core.ids import BlockId, JobId, SessionId
from triptych.core.ports import BlockMemory
from triptych.engine.language import LanguageEngine
from triptych.engine.outcome import Advanced, Drew, Dropped, Ended, Outcome, Reserved

log = logging.getLogger(__name__)


class _Work:
    """One job from its acceptance until nothing of it is held."""

    def __init__(self, job: LanguageJob, deadline_s: float) -> None:
        self.job = job
        self.deadline_s = deadline_s
        self.tasks: list[asyncio.Task[None]] = []
        """Fetching KV, or bringing pictures or a prefix: whatever writes into memory for it."""
        self.is_fetching = False
        self.expected = Expected(job.items)
        self.entries: list[Entry] = []
        """Embeddings held for the engine."""
        self.blame = ""
        self.untold: list[Token] = []
        """Drawn, and not told yet."""
        self.has_told = False
        self.is_over = False
        """The engine has said its last word."""
        self.gone = asyncio.Event()


class DecodeService:
    """Decode jobs of one instance. One event loop."""

    def __init__(
        self,
        engine: LanguageEngine,
        memory: BlockMemory,
        receiver: Fetching,
        sources: tuple[Intake, EmbeddingCache, Prefixes] | None,
        clock: Clock,
        wake: Callable[[], None],
        emit: Callable[[Event], None],
    ) -> None:
        """``sources`` bring embeddings, take them back, and bring KV of prefixes (None where
        nothing is prefilled); ``wake`` tells the engine's pump that there is something to do,
        ``emit`` the session."""
        self._engine = engine
        self._memory = memory
        self._receiver = receiver
        self._sources = sources
        self._clock = clock
        self._wake = wake
        self._emit = emit
        self._works: dict[JobId, _Work] = {}
        self.stream_interval = 1
        """Tokens of a job that are told at once, but for the first."""

    def submit(self, job: LanguageJob) -> None:
        """Accept a job. Raises what the engine refuses it with; idempotent by id."""
        if job.header.id in self._works:
            return
        now_s = self._clock.now()
        self._engine.submit(job, now_s, has_places=not job.items or self._sources is None)
        work = self._works[job.header.id] = _Work(job, now_s + job.header.budget_s)
        if job.items and self._sources is not None:
            self._start(work, self._bring(work, self._sources[0]), "bring")
        elif job.items and job.kv is None:
            for index in range(len(job.items)):
                work.expected.is_absent(index)  # it is in the cached beginning, or the job is over
        self._wake()

    def handle(self, outcome: Outcome) -> bool:
        """Take an outcome of the engine; False if it is of no job of this service."""
        work = self._works.get(outcome.job)
        if work is None:
            return False
        match outcome:
            case Reserved():
                self._reserved(work, outcome)
            case Drew(_, token, later):
                work.untold += (token, *later)
                if not work.has_told or len(work.untold) >= self.stream_interval:
                    self._tell_tokens(work)
            case Ended(job_id, reason, timing):
                self._tell_tokens(work)
                self._emit(Finished(job_id, reason, timing))
                self._over(work)
            case Dropped(job_id, code, detail):
                self._tell_tokens(work)
                self._emit(Failed(job_id, code, detail, work.blame))
                for task in work.tasks:
                    task.cancel()
                self._over(work)
            case Advanced():
                pass
        return True

    def _tell_tokens(self, work: _Work) -> None:
        if work.untold:
            tokens, work.untold, work.has_told = tuple(work.untold), [], True
            self._emit(Tokens(work.job.header.id, tokens))

    async def cancel(self, job: JobId) -> None:
        """End a job; returns when it holds nothing. Unknown ids are fine."""
        work = self._works.get(job)
        if work is None:
            return
        for task in work.tasks:
            task.cancel()
        if work.tasks:
            await asyncio.wait(work.tasks)
        self._engine.cancel(job)
        self._wake()
        await work.gone.wait()

    def jobs(self) -> dict[JobId, SessionId]:
        """Jobs that hold something and their sessions."""
        return {job: work.job.header.session for job, work in self._works.items()}

    def _reserved(self, work: _Work, reserved: Reserved) -> None:
        """The job has its blocks: have filled what is not to be computed here."""
        blocks, hit_tokens = reserved.blocks, reserved.hit_tokens
        if work.job.kv is not None:
            if not work.is_fetching:
                work.is_fetching = True
                fetch = self._fetch(work, work.job.kv, blocks, hit_tokens)
                self._start(work, fetch, "fetch")
        elif self._sources is not None and reserved.awaited_tokens > hit_tokens:
            place = Place(blocks, hit_tokens, reserved.awaited_tokens)
            self._start(work, self._bring_prefix(work, self._sources[2], place), "prefix")
        else:
            self._has_kv(work, hit_tokens)

    async def _bring_prefix(self, work: _Work, prefixes: Prefixes, place: Place) -> None:
        """Bring KV from a lower tier or another instance; what does not come is computed."""
        num_tokens = await prefixes.bring(work.job, place, work.deadline_s)
        num_tokens = self._engine.prefix_arrived(work.job.header.id, num_tokens)
        self._has_kv(work, num_tokens)
        self._wake()

    def _has_kv(self, work: _Work, num_tokens: int) -> None:
        """The KV of so many tokens need not be computed."""
        work.expected.is_there(num_tokens)
        self._check_expected(work)

    def _check_expected(self, work: _Work) -> None:
        if work.expected.is_stale:
            self._engine.fail(work.job.header.id, StaleCache.code, "a picture is not cached")

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

    async def _fetch(
        self, work: _Work, ref: TransferRef, blocks: tuple[BlockId, ...], hit_tokens: int
    ) -> None:
        """Pull the KV behind the prefix hit, and the first token behind the KV."""
        job_id, size = work.job.header.id, self._memory.layout.block_size
        first = hit_tokens // size
        wanted = blocks[first : self._memory.layout.num_blocks(ref.num_tokens)]

        def on_arrived(count: int) -> None:
            self._engine.arrived(job_id, (first + count) * size)

        try:
            tail = await self._receiver.fetch(
                ref, self._memory, wanted, first, on_arrived, work.deadline_s
            )
            token = msgspec.msgpack.decode(tail, type=FirstToken)
            self._memory.absorb(wanted)
        except msgspec.DecodeError as error:
            loss = TransferError(f"the first token is unreadable: {error}")
            self._lacks(work, loss, ref.instance)
        except TriptychError as error:
            self._lacks(work, error, error.blame or ref.instance)
        else:
            self._engine.arrived_all(job_id, token)
            self._wake()

    async def _bring(self, work: _Work, intake: Intake) -> None:
        """Bring the job's pictures; each is computed with as soon as it is there."""
        job_id = work.job.header.id

        def on_ready(index: int, entry: Entry | None) -> None:
            if entry is None:
                work.expected.is_absent(index)
                self._check_expected(work)
                self._wake()
                return
            work.entries.append(entry)
            self._engine.item_ready(job_id, index, entry.blocks)
            self._wake()

        def on_places() -> None:
            self._engine.places_ready(job_id)
            self._wake()

        try:
            await intake.bring(work.job.items, work.deadline_s, on_places, on_ready, job_id)
        except TriptychError as error:
            self._lacks(work, error, error.blame)

    def _lacks(self, work: _Work, error: TriptychError, blame: str) -> None:
        """What the job needs from elsewhere will not come; ``blame`` is where it should have come
        from."""
        work.blame = blame
        if isinstance(error, Cancelled):  # the producer was told to stop, not we: a loss for us
            error = TransferError(str(error))
        self._engine.fail(work.job.header.id, error.code, str(error))
        self._wake()

    def _over(self, work: _Work) -> None:
        """The engine computes nothing more for the job. Pictures that a prefix hit made needless
        still come: their encoder keeps them for us until we took them."""
        if not any(one.ref for one in work.job.items):
            for task in work.tasks:
                task.cancel()
        work.is_over = True
        self._settle(work)

    def _settle(self, work: _Work) -> None:
        """Free everything once nobody writes into memory for this job any more."""
        if not work.is_over or not all(task.done() for task in work.tasks):
            return
        if self._sources is not None:
            while work.entries:
                self._sources[1].release(work.entries.pop())
            self._sources[2].forget(work.job.header.id)
        if self._works.pop(work.job.header.id, None) is not None:
            self._engine.release(work.job.header.id)
            work.gone.set()
        self._wake()
