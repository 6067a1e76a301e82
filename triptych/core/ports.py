"""The seams: what one floor asks of another. Protocols only, one page.

Implementations: executors in ``triptych.executor``, instances in ``cluster.local`` (same process)
and ``triptych.wire.client`` (over gRPC).
"""

from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Protocol

from triptych.core.census import Census
from triptych.core.event import EventBatch
from triptych.core.handoff import Job
from triptych.core.ids import BlockId, ContentHash, JobId, SessionId
from triptych.core.layout import Layout
from triptych.core.plan import Drawn, LanguagePlan, LanguageResult, VisionPlan, VisionResult
from triptych.core.view import Description


class BlockMemory(Protocol):
    """The bytes of one block store; block ``i`` begins at byte ``i * layout.block_bytes``."""

    layout: Layout
    num_blocks: int
    view: memoryview
    """Writable, contiguous bytes of all blocks."""
    fd: int
    """memfd behind ``view`` that another process may map; -1 if there is none."""

    def stage(
        self,
        blocks: Sequence[BlockId],
        layers: range | None = None,
        then: Callable[[], None] | None = None,
    ) -> None:
        """Make ``view`` current for blocks (all their layers, or ``layers``) that an executor
        wrote, behind the work that this thread has queued on their device; nothing to copy on a
        CPU. Returns when it is; with ``then``, which is called when it is, perhaps in another
        thread and in the order of calls, before the executor's step is over."""
        ...

    def absorb(self, blocks: Sequence[BlockId]) -> None:
        """Make blocks written through ``view`` current for the executor; nothing on a CPU."""
        ...


OnDrawn = Callable[[Sequence[Drawn], float], None]
"""Told what every segment of a step drew, and the seconds that the step took."""


class LanguageExecutor(Protocol):
    """Computes language plans. Called by one thread at a time."""

    @property
    def max_steps(self) -> int:
        """Most steps of a plan that are executed in a row."""
        ...

    @property
    def frees_lock(self) -> bool:
        """Whether steps leave the interpreter to other threads of their process: decodes all the
        time, others but between layers."""
        ...

    @property
    def tells_steps(self) -> bool:
        """Whether ``on_drawn`` is called, so that a run may go on behind a sequence's end."""
        ...

    def interrupt(self) -> None:
        """Let a run of steps end behind the one in flight; from any thread, at any time."""
        ...

    @property
    def memory(self) -> BlockMemory:
        """The KV blocks."""
        ...

    @property
    def embeddings(self) -> BlockMemory | None:
        """The embedding blocks, where prompts with items can be prefilled."""
        ...

    def execute(
        self,
        plan: LanguagePlan,
        on_layers: Callable[[int], None] | None = None,
        on_drawn: OnDrawn | None = None,
    ) -> LanguageResult:
        """Write the KV of every segment to its blocks; draw the tokens asked for.

        ``on_layers(n)`` is called on the executor's thread, with ``n`` growing to the number of
        layers, when the first ``n`` layers of all segments are written; not at all is allowed.
        ``on_drawn`` is called there behind every step of a run but the last."""
        ...


class VisionExecutor(Protocol):
    """Computes vision plans. Called by one thread at a time."""

    @property
    def embeddings(self) -> BlockMemory:
        """The embedding blocks."""
        ...

    @property
    def encodes_alone(self) -> bool:
        """Whether a step of several pictures takes as long as a step for each: then the first one's
        embedding need not wait for the last one's."""
        ...

    @property
    def nice(self) -> int:
        """What the thread that calls is to add to its niceness: others here are more urgent."""
        ...

    def execute(self, plan: VisionPlan) -> VisionResult:
        """Write the embedding of every task to its blocks."""
        ...


class Executors(Protocol):
    """What one instance computes with. ``None`` where its role has no such stage."""

    @property
    def language(self) -> LanguageExecutor | None:
        """Prefill, decode or both."""
        ...

    @property
    def vision(self) -> VisionExecutor | None:
        """Encode."""
        ...

    @property
    def embeddings(self) -> BlockMemory | None:
        """The one embedding store that both executors of an instance share."""
        ...

    @property
    def memory_bytes(self) -> dict[str, int]:
        """Bytes of ``weights``, ``kv`` and ``embedding``."""
        ...

    @property
    def pids(self) -> tuple[int, ...]:
        """Other processes that compute for them. When one ends, none of them can go on."""
        ...

    def abandon(self) -> None:
        """One of ``pids`` ended: end the others, and whatever waits for them. Idempotent."""
        ...

    def close(self) -> None:
        """Give the stores back."""
        ...


class Instance(Protocol):
    """An instance as the router sees it, whatever hosts it and whatever stages it serves."""

    async def describe(self) -> Description:
        """What the instance says of itself."""
        ...

    def open(self, session: SessionId) -> AsyncGenerator[EventBatch, None]:
        """The session's events; a batch at least every second. Closing it cancels its jobs."""
        ...

    async def resync(self, session: SessionId) -> None:
        """Tell the session all there is in the caches, from the beginning: some of it was lost."""
        ...

    async def submit(self, job: Job) -> None:
        """Accept a job (its events follow on its session) or raise Overloaded, RequestError,
        Unavailable (draining or wrong stage). Idempotent by job id."""
        ...

    async def cancel(self, jobs: Sequence[JobId]) -> None:
        """End the jobs and return when they hold nothing any more. Unknown ids are fine."""
        ...

    async def census(self) -> Census:
        """Who holds what, now."""
        ...

    async def drain(self, timeout_s: float) -> bool:
        """Take no new jobs; wait for those in flight. Whether none was left."""
        ...

    async def close(self) -> None:
        """Give up the connection (remote) or stop the instance (local)."""
        ...


class Below(Protocol):
    """Tiers below the embedding cache (``triptych.offload.mover.Mover``)."""

    def covered(self, keys: Sequence[ContentHash]) -> int:
        """How many leading ``keys`` could be filled now. Pure."""
        ...

    async def fill(self, entries: Sequence[tuple[ContentHash, Sequence[BlockId]]]) -> int:
        """Fill the blocks of each ``(key, blocks)``, up to the first that cannot be had; how many
        were. Nobody writes to the blocks when this is over."""
        ...
