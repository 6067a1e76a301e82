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
