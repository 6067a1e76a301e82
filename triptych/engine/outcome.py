"""What an engine says happened to its jobs. Values for the service that owns the engine.

Every submitted job hears of exactly one end: ``Embedded`` and ``Ended`` are good ones, ``Dropped``
is the other.
"""

import msgspec

from triptych.core.event import Timing, Token
from triptych.core.ids import BlockId, JobId


class Reserved(msgspec.Struct, frozen=True, tag="reserved"):
    """A language job was admitted. ``blocks`` are its own until it ends (``release`` if it
    publishes or receives). The first ``hit_tokens`` tokens, full blocks, are there already: an
    inbound job fetches from block ``hit_tokens // block_size`` on. If ``awaited_tokens`` is larger,
    tokens up to there are to be brought from elsewhere, then ``prefix_arrived`` is to be called.

    Comes again, with a new hit, when a preempted job is admitted anew; only jobs that neither
    publish nor still receive are ever preempted.
    """

    job: JobId
    blocks: tuple[BlockId, ...]
    hit_tokens: int
    awaited_tokens: int = 0


class Advanced(msgspec.Struct, frozen=True, tag="advanced"):
    """The KV of tokens ``[0, computed)`` is in the blocks. Only for jobs that publish."""

    job: JobId
    computed: int


class Drew(msgspec.Struct, frozen=True, tag="drew"):
    """A token was drawn; in a run of steps, ``later`` ones too."""

    job: JobId
    token: Token
    later: tuple[Token, ...] = ()


class Ended(msgspec.Struct, frozen=True, tag="ended"):
    """A language job is done: ``prefilled`` (its blocks stay until ``release``), or ``stop`` or
    ``length`` (it holds nothing any more)."""

    job: JobId
    reason: str
    timing: Timing


class Embedded(msgspec.Struct, frozen=True, tag="embedded"):
    """A picture's embedding is in ``blocks``, which stay until ``release``. ``is_cached``: this
    job computed nothing for it."""

    job: JobId
    blocks: tuple[BlockId, ...]
    is_cached: bool
    timing: Timing


class Dropped(msgspec.Struct, frozen=True, tag="dropped"):
    """A job is over without its result; ``code`` is one of ``core.errors``. If it publishes or was
    still receiving, its blocks stay until ``release``: stop all who touch them first."""

    job: JobId
    code: str
    detail: str


class Starved(msgspec.Struct, frozen=True, tag="starved"):
    """Jobs ``waiting``, in order, have no room, and for the engine's ``patience_s`` the first of
    them was given none. Comes again after as long."""

    waiting: tuple[JobId, ...]

    @property
    def job(self) -> JobId:
        """The first."""
        return self.waiting[0]


Outcome = Reserved | Advanced | Drew | Ended | Embedded | Dropped | Starved
