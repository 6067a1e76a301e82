"""One sequence inside a language engine: tokens known, KV computed, and the debt between them.

Knows its own chunks, items and stop rule. Does not know other sequences, budgets or blocks' owners.
"""

import math
from bisect import bisect_right
from collections.abc import Iterator
from enum import Enum

from triptych.cache.kv import KvTable
from triptych.core.event import Steps, Timing
from triptych.core.handoff import LanguageJob
from triptych.core.ids import BlockId, JobId
from triptych.core.plan import Draw, PlacedItem, Segment
from triptych.engine.policies import CALM, Work, claim_of


class Phase(Enum):
    """Where a sequence is in its life."""

    WAITING = "waiting"
    """Has no blocks."""
    ARRIVING = "arriving"
    """Has blocks; another instance's KV is being written to them."""
    RUNNING = "running"
    """Has blocks; its debt is computed here."""
    HELD = "held"
    """Is over; its blocks stay until somebody outside lets go of them."""
    OVER = "over"
    """Is forgotten and holds nothing."""


class Sequence:
    """State of one language job. Changed only by its engine."""

    __slots__ = (
        "arrival",
        "awaited",
        "blocked_since",
        "boundaries",
        "cached_tokens",
        "chunk_tokens",
        "claim",
        "compute_s",
        "computed",
        "deadline_s",
        "due_s",
        "ending",
        "finished",
        "first_steps",
        "has_places",
        "hit",
        "is_abandoned",
        "is_foreseen",
        "item_blocks",
        "items_end",
        "job",
        "last_steps",
        "matched",
        "num_overtaken",
        "num_passed_over",
        "overlaps",
        "paced",
        "phase",
        "prefill_s",
        "prompt_len",
        "queue_s",
        "receives",
        "started_steps",
        "submitted_s",
        "table",
        "tail_items",
        "tokens",
        "transfer_s",
    )  # fmt: skip

    def __init__(
        self, job: LanguageJob, table: KvTable, boundaries: tuple[int, ...], chunk_tokens: int
    ) -> None:
        self.job = job
        self.table = table
        self.tokens = table.tokens
        self.boundaries = boundaries
        """Chunk ends within the prompt."""
        self.chunk_tokens = chunk_tokens
        """Behind the prompt, chunks end at multiples of this."""
        self.overlaps = True
        """Whether text is computed while pictures are on their way."""
        self.prompt_len = len(job.prompt)
        self.phase = Phase.WAITING
        self.computed = 0
        self.receives = job.kv is not None
        """Whether its KV comes, or is coming, from another instance."""
        self.awaited = 0
        """Leading tokens whose KV is being brought from a lower tier or another instance."""
        self.is_abandoned = False
        """Whether all outside have let go of the blocks, or never touched them."""
        self.has_places = True
        """Whether its pictures have places to come to, or need none."""
        self.is_foreseen = False
        """Whether its waiting was told."""
        self.ending: tuple[str, str] | None = None
        """Code and detail of an end that waits for the step in flight."""
        self.finished: str | None = None
        """The reason of its end in a run that goes on without it."""
        self.item_blocks: list[tuple[BlockId, ...] | None] = [None] * len(job.prompt.items)
        self.items_end = job.prompt.items[-1].end if job.prompt.items else 0
        self.tail_items = tuple(PlacedItem(item) for item in job.prompt.items)
        self.arrival = 0
        self.hit = 0
        """While it waits: tokens that the tree held when ``matched`` was the cache's version."""
        self.matched = -1
        self.num_overtaken = 0
        """Sequences that came later and were admitted while this one waited."""
        self.num_passed_over = 0
        """Steps in a row in which it was ready and nothing of it was taken."""
        self.claim, self.due_s = CALM, math.inf
        self.paced: tuple[float, int] | None = None
        """Since when tokens are due a gap apart, and the place of the first of these."""
        self.submitted_s = self.deadline_s = 0.0
        self.queue_s: float | None = None
        self.blocked_since: float | None = None
        self.transfer_s = self.compute_s = self.prefill_s = 0.0
        self.cached_tokens: int | None = None
        self.started_steps: Steps | None = None
        """The engine's steps before the first one that computed for it."""
        self.first_steps = self.last_steps = Steps()
        """The same up to its first token, and up to its last."""

    @property
    def id(self) -> JobId:
        """The job's."""
        return self.job.header.id

    @property
    def total(self) -> int:
        """Tokens known: prompt, tokens of earlier attempts, tokens drawn here."""
        return len(self.tokens)

    @property
    def pending(self) -> int:
        """The debt: known tokens whose KV is not there."""
        return len(self.tokens) - self.computed

    @property
    def num_output(self) -> int:
        """Output tokens of the request so far, over all attempts."""
        return len(self.tokens) - self.prompt_len

    @property
    def has_drawn(self) -> bool:
        """Whether this attempt has a token of its own."""
        return self.num_output > len(self.job.generated)

    @property
    def peak_tokens(self) -> int:
        """Most tokens whose KV is ever held: the last token drawn needs none."""
        if self.job.publish is not None:
            return self.total
        return max(self.total, self.prompt_len + self.job.stop.max_tokens - 1)

    @property
    def is_shared_outside(self) -> bool:
        """Whether somebody outside may be reading or writing the blocks."""
        if self.is_abandoned or not self.table.is_open:
            return False
        return self.job.publish is not None or self.phase is Phase.ARRIVING

    @property
    def is_preferred(self) -> bool:
        """Whether it was put before all others."""
        return self.arrival < 0

    def note_submitted(self, now: float) -> None:
        """The job came: its deadlines in the engine's time."""
        header = self.job.header
        self.submitted_s, self.deadline_s = now, now + header.budget_s
        self.claim = claim_of(header, now, 0 if self.receives else self.total)
        if header.slo_ttft_s is not None:
            self.due_s = now + header.slo_ttft_s

    def note_came(self) -> None:
        """KV came from elsewhere, late by an unknown time: the next token is due at once."""
        self.due_s = -math.inf if self.claim.tpot_s < math.inf else math.inf

    def note_drawn(self, now: float, count: int = 1) -> None:
        """``count`` tokens were drawn. From the request's first on, when it was drawn, or else from
        the first drawn here on, when it was due, one more is due after each gap."""
        start = self.num_output - count
        if self.paced is None:
            self.paced = (self.due_s if start else now), start
        begin_s, begin = self.paced
        self.due_s = begin_s + (self.num_output - begin) * self.claim.tpot_s

    def finish_reason(self) -> str | None:
        """``stop`` or ``length`` if the sequence is complete."""
        stop, num_output = self.job.stop, len(self.tokens) - self.prompt_len
        if num_output and self.tokens[-1] in stop.token_ids:
            return "stop"
        return "length" if num_output >= stop.max_tokens else None

    def chunk_end(self, start: int) -> int:
        """End of the chunk that contains position ``start``."""
        if start < self.prompt_len:
            return self.boundaries[bisect_right(self.boundaries, start)]
        return min((start // self.chunk_tokens + 1) * self.chunk_tokens, self.total)

    def work(self, start: int, end: int) -> Work:
        """A piece of this sequence as policies see it."""
        return Work(
            self.job.header.id,
            self.arrival,
            start,
            end,
            len(self.tokens),
            start == self.computed,
            self.hit,
            self.num_overtaken,
            self.num_passed_over,
            self.due_s,
            self.compute_s,
            self.claim,
        )

    def ready(self, limit: int) -> Iterator[Work]:
        """The next chunks whose items are here and whose blocks are reserved, in order, up to the
        first that goes beyond ``limit`` tokens (that one included)."""
        start, total = self.computed, len(self.tokens)
        capacity = self.table.capacity
        while start < total and start - self.computed < limit:
            end = total if start + 1 == total else self.chunk_end(start)
            if end > capacity or self._lacks_item(start, end):
                return
            yield self.work(start, end)
            start = end

    def segment(self, start: int, end: int) -> Segment:
        """What the executor needs to compute ``[start, end)``; a draw if all is known then."""
        job, draw = self.job, None
        if end == self.total:
            history = tuple(self.tokens) if job.sampling.needs_history else ()
            draw = Draw(job.sampling, end, self.prompt_len, history)
        items = self.tail_items
        if start < self.items_end:
            items = tuple(
                PlacedItem(item, blocks or () if item.end > start else ())
                for item, blocks in zip(job.prompt.items, self.item_blocks, strict=True)
                if item.offset < end
            )
        tokens = tuple(self.tokens[start:end])
        blocks = self.table.blocks
        return Segment(job.header.id, start, tokens, blocks, items, draw, job.header.salt)

    def note_waiting(self, now: float) -> None:
        """Account time in which the next chunk waits for bytes promised by others."""
        blocked = self.phase is Phase.ARRIVING or (
            self.phase is Phase.RUNNING
            and self._lacks_item(self.computed, self.chunk_end(self.computed))
        )
        if blocked and self.blocked_since is None:
            self.blocked_since = now
        elif not blocked and self.blocked_since is not None:
            self.transfer_s += now - self.blocked_since
            self.blocked_since = None

    def note_started(self, now: float) -> None:
        """Account the end of queueing; what was due at once was due now."""
        if self.due_s == -math.inf:
            self.due_s = now
        if self.queue_s is None:
            self.queue_s = now - self.submitted_s

    def note_computed(self, seconds: float, before: Steps, steps: Steps) -> None:
        """Account a step that computed for it, before what it drew is known; the engine's steps
        without it and with it."""
        if self.started_steps is None:
            self.started_steps = self.first_steps = before
        self.compute_s += seconds
        self.last_steps = steps
        if not self.has_drawn:
            self.prefill_s, self.first_steps = self.compute_s, steps

    def timing(self) -> Timing:
        """Where the time went."""
        started = self.started_steps or self.first_steps
        return Timing(
            queue_s=self.queue_s or 0.0,
            transfer_s=self.transfer_s,
            compute_s=self.compute_s,
            prefill_s=self.prefill_s,
            cached_tokens=self.cached_tokens or 0,
            first_steps=self.first_steps.since(started),
            later_steps=self.last_steps.since(self.first_steps),
        )

    def _lacks_item(self, start: int, end: int) -> bool:
        if start >= self.items_end:
            return False
        if not self.overlaps:
            end = self.items_end
        return any(
            blocks is None and item.offset < end and item.end > start
            for item, blocks in zip(self.job.prompt.items, self.item_blocks, strict=True)
        )
