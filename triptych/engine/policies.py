"""What an engine asks of policies, as protocols of pure functions. The policies are elsewhere."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import msgspec

from triptych.core.ids import JobId
from triptych.core.request import Prompt


class Work(NamedTuple):
    """A piece of a sequence that can be computed now: tokens ``[start, end)`` of ``total``."""

    job: JobId
    arrival: int
    """Place in the order of submission; smaller is older."""
    start: int
    end: int
    total: int
    is_next: bool = True
    """Whether everything of its sequence before ``start`` is computed already."""
    hit: int = 0
    """Of a waiting sequence: leading tokens that are cached here. 0 unless ``Policies.matches``."""
    num_overtaken: int = 0
    """Of a waiting sequence: how many that came later were admitted before it."""

    @property
    def is_decode(self) -> bool:
        """Whether it is one token, the last one known, and the only one missing."""
        return self.is_next and self.end == self.total == self.start + 1


class Budget(NamedTuple):
    """What one step may take."""

    tokens: int
    pieces: int
    """Most pieces of work."""
    passed_over: int
    """Steps in a row in which prefill was ready and none of it was taken."""


class Boundaries(Protocol):
    """Where the prompt's chunks end, ascending; the last is the prompt's length."""

    def __call__(self, prompt: Prompt, chunk_tokens: int) -> tuple[int, ...]:
        """A function of the prompt alone, never of load or time."""
        ...


class Order(Protocol):
    """The order in which waiting sequences are admitted."""

    def __call__(self, waiting: Sequence[Work]) -> Sequence[int]:
        """Indices of ``waiting`` (in order of arrival), the most urgent first. Within this order
        the engine lets nobody overtake. Whoever waits must come first at some time."""
        ...


class Batching(Protocol):
    """The pieces of work that make the next step."""

    def __call__(self, ready: Sequence[Work], budget: Budget) -> Sequence[int]:
        """Indices of ``ready`` in the order of the step; at least one if there is one. A
        sequence's pieces are taken in order, without a gap."""
        ...


class Preemption(Protocol):
    """Who gives its blocks back."""

    def __call__(self, wanting: Work, running: Sequence[Work]) -> int | None:
        """Index of the sequence of ``running`` to preempt for ``wanting``, or None to wait."""
        ...


class Policies(msgspec.Struct, frozen=True):
    """One choice of each."""

    boundaries: Boundaries
    order: Order
    batching: Batching
    preemption: Preemption
    matches: bool = False
    """Whether ``order`` looks at ``Work.hit``, which costs a walk through the tree."""
