"""The way between a router and an instance: each message takes a fixed time, and what the threads
at both ends do for it."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence

from simulator.threads import Threads
from triptych.core.census import Census
from triptych.core.errors import TriptychError
from triptych.core.event import EventBatch
from triptych.core.handoff import Job
from triptych.core.ids import InstanceId, JobId, SessionId
from triptych.core.ports import Instance
from triptych.core.view import Description


class Far:
    """An instance that is ``hop_s`` away. Implements ``core.ports.Instance``.

    Answers come back at once: what a caller waits for is that its job was taken, and the first
    event of it comes a hop later anyway.
    """

    def __init__(
        self, instance: Instance, hop_s: float, name: InstanceId, threads: Threads | None = None
    ) -> None:
        self._instance = instance
        self._hop_s = hop_s
        self._name = name
        self._threads = threads

    async def describe(self) -> Description:
        """See ``Instance``."""
        return await self._instance.describe()

    async def open(self, session: SessionId) -> AsyncGenerator[EventBatch, None]:
        """See ``Instance``: each batch a hop later than it left."""
        loop = asyncio.get_running_loop()
        batches: asyncio.Queue[tuple[float, EventBatch | TriptychError]] = asyncio.Queue()

        async def listen() -> None:
            try:
                async for batch in self._instance.open(session):
                    if self._threads is not None:
                        await self._threads.sent(self._name, batch)
                    batches.put_nowait((loop.time() + self._hop_s, batch))
                    if self._threads is not None:
                        await self._threads.ended(self._name, batch)
            except TriptychError as error:
                batches.put_nowait((loop.time() + self._hop_s, error))

        listening = asyncio.create_task(listen())
        try:
            while True:
                due_s, batch = await batches.get()
                if due_s > loop.time():
                    await asyncio.sleep(due_s - loop.time())
                if isinstance(batch, TriptychError):
                    raise batch
                if self._threads is not None:
                    await self._threads.heard(batch)
                yield batch
        finally:
            listening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await listening

    async def resync(self, session: SessionId) -> None:
        """See ``Instance``."""
        await self._instance.resync(session)

    async def submit(self, job: Job) -> None:
        """See ``Instance``."""
        if self._threads is not None:
            await self._threads.submitting()
        await asyncio.sleep(self._hop_s)
        if self._threads is not None:
            await self._threads.accepted(self._name)
        await self._instance.submit(job)

    async def cancel(self, jobs: Sequence[JobId]) -> None:
        """See ``Instance``."""
        await asyncio.sleep(self._hop_s)
        await self._instance.cancel(jobs)

    async def census(self) -> Census:
        """See ``Instance``."""
        return await self._instance.census()

    async def drain(self, timeout_s: float) -> bool:
        """See ``Instance``."""
        return await self._instance.drain(timeout_s)

    async def close(self) -> None:
        """See ``Instance``."""
        await self._instance.close()
