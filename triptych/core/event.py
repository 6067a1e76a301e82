"""What an instance tells a router about its jobs. One batch of events per step and session.

Times are durations in seconds on the instance's own clock, never points in time.
"""

import msgspec

from triptych.core.catalog import CacheBatch, LinkReport
from triptych.core.ids import JobId


class Token(msgspec.Struct, frozen=True):
    """A drawn token. ``index`` counts the request's output tokens from 0, across attempts."""

    index: int
    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Steps(msgspec.Struct, frozen=True):
    """Steps of an engine in a row, summed, whoever's work was in them. Where a step's seconds are
    linear in what it contains, so are the sums': a cost model is fitted to these."""

    count: int = 0
    seconds: float = 0.0
    tokens: int = 0
    """Of chunks; visual tokens of pictures."""
    pairs: int = 0
    """Of chunks: tokens times the tokens that each attends to. Of pictures: squares of tokens."""
    decodes: int = 0
    """Sequences that drew their next token, a count for each step."""
    context: int = 0
    """Cached tokens of those."""

    def since(self, earlier: "Steps") -> "Steps":
        """What came behind ``earlier``, where both count from the same beginning."""
        return Steps(
            self.count - earlier.count,
            self.seconds - earlier.seconds,
            self.tokens - earlier.tokens,
            self.pairs - earlier.pairs,
            self.decodes - earlier.decodes,
            self.context - earlier.context,
        )


class Timing(msgspec.Struct, frozen=True):
    """Where a job's time went at one stage."""

    queue_s: float = 0.0
    """From acceptance to the first step that computed for it."""
    transfer_s: float = 0.0
    """Waiting for and copying promised bytes that had not arrived yet."""
    compute_s: float = 0.0
    """Inside steps that computed for it."""
    prefill_s: float = 0.0
    """The part of ``compute_s`` up to the job's first drawn token."""
    cached_tokens: int = 0
    """Tokens (or visual tokens) found in a cache of the stage."""
    first_steps: Steps = Steps()
    """From the first step that computed for it to its first drawn token, or to its embedding."""
    later_steps: Steps = Steps()
    """Those behind, to its end."""


class Encoded(msgspec.Struct, frozen=True, tag="encoded"):
    """The picture's embedding is offered."""

    job: JobId
    timing: Timing


class Tokens(msgspec.Struct, frozen=True, tag="tokens"):
    """New tokens of a job, in order, without gap or repetition."""

    job: JobId
    tokens: tuple[Token, ...]


class Finished(msgspec.Struct, frozen=True, tag="finished"):
    """The job is done and every resource it held is free, except blocks under a lease."""

    job: JobId
    reason: str
    """``stop`` or ``length`` for a decode job, ``prefilled`` for a prefill job, ``lent`` for a
    loan that is over, however it ended."""
    timing: Timing


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The job is over without its result; ``code`` is one of ``core.errors``."""

    job: JobId
    code: str
    detail: str
    blame: str = ""
    """Instance at fault when it is another one than the sender, else empty."""


Event = Encoded | Tokens | Finished | Failed


class EventBatch(msgspec.Struct, frozen=True):
    """Everything that happened to one session's jobs in one step, and what the instance tells of
    its caches and links. Empty batches are heartbeats."""

    events: tuple[Event, ...] = ()
    caches: tuple[CacheBatch, ...] = ()
    """The first one of a session is a snapshot, unless a directory elsewhere is told."""
    links: tuple[LinkReport, ...] = ()
    """All links of the instance, when they changed."""
