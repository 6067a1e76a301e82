"""One picture inside a vision engine: who asked for it, where its embedding goes, how far it is.

Knows its own job. Does not know other pictures, budgets or blocks.
"""

import math
from enum import Enum

from triptych.cache.embeddings import Entry
from triptych.core.event import Steps
from triptych.core.handoff import EncodeJob
from triptych.core.ids import ContentHash, JobId, attempt_of
from triptych.engine.policies import Visual, claim_of


class Phase(Enum):
    """Where a picture is in its life."""

    WAITING = "waiting"
    """Has no entry."""
    JOINED = "joined"
    """Has an entry that this job or another is to write."""
    HELD = "held"
    """Was told Embedded; the entry stays until ``release``."""


class Picture:
    """State of one encode job. Changed only by its engine."""

    __slots__ = (
        "arrival",
        "attempt",
        "claim",
        "compute_s",
        "deadline_s",
        "due_s",
        "entry",
        "is_cancelled",
        "is_expected",
        "is_preferred",
        "is_writer",
        "job",
        "phase",
        "pixels",
        "started_s",
        "steps",
        "submitted_s",
    )

    def __init__(self, job: EncodeJob, now: float, arrival: int, *, is_expected: bool) -> None:
        self.job = job
        self.arrival = arrival
        self.attempt = attempt_of(job.header.id)
        self.pixels: object | None = None
        self.is_expected = is_expected
        """Whether its pixels are still to come; without them and not expected it waits for what
        another job encodes."""
        self.phase = Phase.WAITING
        self.entry: Entry | None = None
        self.is_writer = False
        """Whether the step in flight encodes this very job."""
        self.is_cancelled = self.is_preferred = False
        self.claim = claim_of(job.header, now)
        self.submitted_s, self.deadline_s = now, now + job.header.budget_s
        slo_ttft_s = job.header.slo_ttft_s
        self.due_s = math.inf if slo_ttft_s is None else now + slo_ttft_s
        self.started_s: float | None = None
        self.compute_s = 0.0
        self.steps = Steps()
        """The step that encoded it."""

    @property
    def id(self) -> JobId:
        """The job's."""
        return self.job.header.id

    @property
    def key(self) -> ContentHash:
        """Of the picture's content."""
        return self.job.item.key

    @property
    def can_wait(self) -> bool:
        """Whether it can still be encoded if nobody else encodes an equal picture."""
        return self.is_expected or self.pixels is not None

    @property
    def num_tokens(self) -> int:
        """Visual tokens of the picture."""
        return self.job.item.num_tokens

    def waits(self, left_tokens: int, since_s: float) -> Visual:
        """The picture as policies see it, beside what waits of its request."""
        return Visual(
            self.id,
            self.arrival,
            self.num_tokens,
            left_tokens,
            since_s,
            self.due_s,
            self.claim,
        )

    def join(self, entry: Entry) -> None:
        """Wait for ``entry``, or write it."""
        self.entry, self.phase = entry, Phase.JOINED
