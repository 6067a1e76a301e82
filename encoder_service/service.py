"""The encode stage of one instance: a picture in, its visual tokens offered to whoever prefills.

A picture whose embedding is here, on its way or in a lower tier is never decoded. Knows neither
gRPC nor Ray nor tensors; pixels pass through unseen.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial

import msgspec

from encoder_service.pictures import Pictures
from encoder_service.recall import Recall
from kvtransfer.offer import Offer
from kvtransfer.promises import Promises
from triptych.core.clock import Clock
from triptych.core.errors import TriptychError
from triptych.core.event import Encoded, Event, Failed
from triptych.core.handoff import EncodeJob
from triptych.core.ids import JobId, SessionId
from triptych.core.ports import BlockMemory
from triptych.engine.outcome import Dropped, Embedded, Outcome, Starved
from triptych.engine.vision import VisionEngine

log = logging.getLogger(__name__)


class _Work:
    """One job from its acceptance until nothing of it is held."""

    def __init__(self, job: EncodeJob, accepted_s: float) -> None:
        self.job = job
        """Without the picture's bytes."""
        self.accepted_s = accepted_s
        self.offer: Offer | None = None
        self.decoding: asyncio.Task[None] | None = None
        self.is_over = False
        """The picture is encoded, or never will be."""
        self.is_released = False
        """No taker can read the embedding under this job's handle any more."""
        self.gone = asyncio.Event()


class EncodeService:
    """Encode jobs of one instance. One event loop."""

    def __init__(
        self,
        engine: VisionEngine,
        memory: BlockMemory,
        outbox: Promises,
        pictures: tuple[Pictures, Recall],
        clock: Clock,
        wake: Callable[[], None],
        emit: Callable[[Event], None],
    ) -> None:
        """``pictures`` decode, and bring what was encoded before; ``wake`` tells the engine's pump
        that there is something to do, ``emit`` the session."""
        self._engine = engine
        self._memory = memory
        self._outbox = outbox
        self._pictures, self._recall = pictures
        self._clock = clock
        self._wake = wake
        self._emit = emit
        self._works: dict[JobId, _Work] = {}

    def submit(self, job: EncodeJob) -> None:
        """Accept a job. Raises Overloaded, before any work, if too many pictures wait to be
        decoded; idempotent by id."""
        if job.header.id in self._works:
            return
        self._pictures.check_room()
        now_s = self._clock.now()
        bare = msgspec.structs.replace(job, data=b"")
        needs_pixels = not self._engine.join(bare, now_s)
        if needs_pixels:
            self._engine.expect(bare, now_s)
        work = self._works[job.header.id] = _Work(bare, now_s)
        work.offer = self._outbox.offer(
            job.handle,
            job.header.epoch,
            self._memory,
            job.header.id,
            partial(self._released, work),
        )
        if needs_pixels:
            decoding = self._obtain(work, job)
            work.decoding = asyncio.create_task(decoding, name=f"decode {job.header.id}")
        self._wake()

    def handle(self, outcome: Outcome) -> None:
        """Take an outcome of the engine."""
        work = self._works.get(outcome.job)
        if work is None or work.offer is None:
            return
        match outcome:
            case Embedded(job_id, blocks, _, timing):
                self._memory.stage(blocks)
                work.offer.append(blocks)
                work.offer.finish()
                self._emit(Encoded(job_id, timing))
                self._over(work)
            case Dropped(_, code, detail):
                if work.decoding is not None:
                    work.decoding.cancel()
                self._fail(work, code, detail)
            case Starved(waiting):
                self._relieve([self._works[job] for job in waiting if job in self._works])
            case _:
                log.error("a vision engine does not say %r", outcome)

    async def cancel(self, job: JobId) -> None:
        """End a job; returns when it holds nothing. Unknown ids are fine."""
        work = self._works.get(job)
        if work is None:
            return
        if work.decoding is not None:
            work.decoding.cancel()
            await asyncio.wait([work.decoding])
        await self._outbox.withdraw(work.job.handle)
        self._engine.cancel(job)
        self._wake()
        await work.gone.wait()

    def jobs(self) -> dict[JobId, SessionId]:
        """Jobs that hold something, leases included, and their sessions."""
        return {job: work.job.header.session for job, work in self._works.items()}

    async def _obtain(self, work: _Work, job: EncodeJob) -> None:
        """The embedding from a lower tier, or else pixels at the size of the item's grid, to the
        engine. Only this keeps the encoded bytes: no longer than decoding may take."""
        name = job.header.id
        try:
            with self._pictures.waiting():
                deadline_s = work.accepted_s + job.header.budget_s
                async with self._recall.bring(job.item, name, deadline_s) as is_here:
                    if is_here:
                        self._engine.rely(name)
                        return
            self._engine.submit(name, await self._pictures.decode(job))
        except TriptychError as error:
            self._engine.abandon(name, error.code, str(error))
        except Exception:
            # The last guard: the job ends, gives its place back, and the log has the bug.
            log.exception("%s could not be decoded", name)
            self._engine.abandon(name, "internal", "the picture could not be decoded")
        finally:
            self._wake()

    def _relieve(self, works: Sequence[_Work]) -> None:
        """Pictures have no room: make some for those that takers wait for."""
        awaited = self._outbox.relieve(self._memory, [work.job.handle for work in works])
        ids = [work.job.header.id for work in works if work.job.handle in awaited]
        self._engine.prefer(ids)
        self._wake()

    def _fail(self, work: _Work, code: str, detail: str) -> None:
        if work.offer is not None:
            work.offer.fail(code, detail)
        self._emit(Failed(work.job.header.id, code, detail))
        self._over(work)

    def _over(self, work: _Work) -> None:
        work.is_over = True
        self._settle(work)

    def _released(self, work: _Work, reason: str) -> None:
        """The lease is over: the embedding stays cached, but not for this job."""
        log.debug("%s: lease %s", work.job.header.id, reason)
        work.is_released = True
        self._settle(work)

    def _settle(self, work: _Work) -> None:
        if work.is_over and work.is_released:
            self._engine.release(work.job.header.id)
            self._works.pop(work.job.header.id, None)
            work.gone.set()
            self._wake()
