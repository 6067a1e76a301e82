"""What an engine asks of policies, as protocols of pure functions. The policies are elsewhere."""

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import msgspec

from triptych.core.handoff import JobHeader
from triptych.core.ids import JobId
from triptych.core.request import Prompt


class Claim(NamedTuple):
    """What a job says, once and for all, of how soon it must get on. Times are the engine's."""

    submitted_s: float = 0.0
    end_s: float = math.inf
    """Its deadline: nothing behind it is of use."""
    tpot_s: float = math.inf
    """Bound on the mean gap between its tokens; infinite without one."""
    later_s: float = 0.0
    """Predicted seconds of the stages behind this one, up to the next token there."""
    priority: int = 0
    """Larger goes first."""
    prefill_tokens: int = 0
    """Tokens to compute before it draws its first; 0 if their KV comes from elsewhere."""


CALM = Claim()
"""Nothing is known."""


def claim_of(header: JobHeader, now: float, prefill_tokens: int = 0) -> Claim:
    """What a job that came ``now`` says."""
    tpot_s = math.inf if header.slo_tpot_s is None else header.slo_tpot_s
    end_s = now + header.budget_s
    return Claim(now, end_s, tpot_s, header.later_s, header.priority, prefill_tokens)


class Moment(NamedTuple):
    """When a policy is asked."""

    now_s: float = 0.0
    number: int = 0
    """Of the turn, counted by the engine: a turn is over when the first of the order had it. So an
    order that gives some turns to whoever waits longest lets nobody wait for ever."""


START = Moment()


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
    num_passed_over: int = 0
    """Of a running sequence: steps in a row in which it was ready and nothing of it was taken."""
    due_s: float = math.inf
    """When its next token is due; infinite without a bound."""
    served_s: float = 0.0
    """Seconds of all steps that computed some of it."""
    claim: Claim = CALM

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

    def __call__(self, waiting: Sequence[Work], moment: Moment, /) -> Sequence[int]:
        """Indices of ``waiting`` (in order of arrival), the most urgent first. Within this order
        the engine lets nobody overtake. Whoever waits must come first at some turn: turns are
        calls in which the first was admitted."""
        ...


class Batching(Protocol):
    """The pieces of work that make the next step."""

    def __call__(self, ready: Sequence[Work], budget: Budget, moment: Moment, /) -> Sequence[int]:
        """Indices of ``ready`` in the order of the step; at least one if there is one. A
        sequence's pieces are taken in order, without a gap. Turns are steps."""
        ...


class Visual(NamedTuple):
    """A picture that waits to be encoded."""

    job: JobId
    arrival: int
    num_tokens: int
    """Visual tokens."""
    left_tokens: int
    """Of all pictures of its request that wait here, its own included."""
    since_s: float
    """When the first of those came."""
    due_s: float = math.inf
    """When its request's next token is due."""
    claim: Claim = CALM


class EncodeOrder(Protocol):
    """The order in which pictures get places and are encoded."""

    def __call__(self, waiting: Sequence[Visual], moment: Moment, /) -> Sequence[int]:
        """Indices of ``waiting`` (in order of arrival), the most urgent first. Within this order
        the engine lets nobody take a place that an earlier one waits for. Turns are steps in which
        the first got its place."""
        ...


def in_order_of_arrival(waiting: Sequence[Visual], _moment: Moment, /) -> Sequence[int]:
    """First come, first served."""
    return range(len(waiting))


class Beside(NamedTuple):
    """What a language engine computes on the device on which pictures are encoded."""

    num_decodes: int = 0
    context: int = 0
    """Cached tokens that these attend to, in all."""
    tpot_s: float = math.inf
    """The tightest bound on the mean gap between their tokens."""
    num_prefills: int = 0
    """Sequences that have more to compute than their last token and could do so now: no picture
    that is on its way holds them up."""

    @property
    def is_idle(self) -> bool:
        """Whether the device is the pictures' alone."""
        return not self.num_decodes and not self.num_prefills


class Split(Protocol):
    """Which part of a device a step of pictures may take."""

    def __call__(
        self, step: Sequence[Visual], waiting: Sequence[Visual], beside: Beside, moment: Moment, /
    ) -> float:
        """Above 0, at most 1: for the pictures of the ``step``. Those ``waiting`` have their pixels
        and are to be encoded behind it, in that order."""
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
