"""Lending: cached KV of a prompt's beginning, offered to an instance that would compute it again.

The blocks are held as a table that is all hit, so they are neither evicted nor written until the
lease is over. What a directory promised and the tree does not hold any more is refused at once.
Does not know who asks, nor what he does with it.
"""

import asyncio
from collections.abc import Callable
from functools import partial

from kvtransfer.promises import Promises
from triptych.cache.kv import KvCache, KvTable
from triptych.core.errors import StaleCache
from triptych.core.event import Event, Finished, Timing
from triptych.core.handoff import LendJob
from triptych.core.ids import JobId, SessionId
from triptych.core.ports import BlockMemory

REASON = "lent"


class _Loan:
    """One job from its acceptance until the blocks are free."""

    def __init__(self, job: LendJob, table: KvTable) -> None:
        self.job = job
        self.table = table
        self.gone = asyncio.Event()


class Lending:
    """Loans of one language instance. One event loop."""

    def __init__(
        self,
        cache: KvCache,
        memory: BlockMemory,
        outbox: Promises,
        wake: Callable[[], None],
        emit: Callable[[Event], None],
    ) -> None:
        """``wake`` tells engines that blocks are free again, ``emit`` tells the job's session."""
        self._cache = cache
        self._memory = memory
        self._outbox = outbox
        self._wake = wake
        self._emit = emit
        self._loans: dict[JobId, _Loan] = {}

    def submit(self, job: LendJob) -> None:
        """Offer what is asked for, all or nothing; idempotent by id."""
        header, prompt = job.header, job.prompt
        if header.id in self._loans:
            return
        table = self._cache.table(header.id, header.salt, list(prompt.token_ids), prompt.items)
        loan = self._loans[header.id] = _Loan(job, table)
        offer = self._outbox.offer(
            job.handle, header.epoch, self._memory, header.id, partial(self._released, loan)
        )
        size = len(prompt)
        if self._cache.match(table, size) < size:
            offer.fail(StaleCache.code, "the prefix is not cached any more")
            return
        self._cache.open(table, size, limit=size)
        self._memory.stage(table.blocks)
        offer.append(table.blocks)
        offer.finish()

    async def cancel(self, job: JobId) -> None:
        """End a loan; returns when it holds nothing. Unknown ids are fine."""
        loan = self._loans.get(job)
        if loan is not None:
            await self._outbox.withdraw(loan.job.handle)
            await loan.gone.wait()

    def relieve(self) -> None:
        """Somebody here has had no room for long: the youngest loan that nobody fetches yet ends.
        Its borrower may himself wait for what the one without room will free; he computes it."""
        self._outbox.revoke({loan.job.handle for loan in self._loans.values()})

    def jobs(self) -> dict[JobId, SessionId]:
        """Loans and their sessions."""
        return {job: loan.job.header.session for job, loan in self._loans.items()}

    def _released(self, loan: _Loan, _reason: str) -> None:
        """Nobody reads the blocks any more."""
        job = loan.job.header.id
        self._cache.release(loan.table)
        del self._loans[job]
        self._emit(Finished(job, REASON, Timing()))
        loan.gone.set()
        self._wake()
