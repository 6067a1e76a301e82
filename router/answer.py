"""What the path of a request gives to a door, and what a door may ask of it.

Both doors speak to ``Service``; neither knows an instance, a stage or a block.
"""

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

import msgspec

from triptych.core.ids import RequestId, TenantId
from triptych.core.request import Request, Slo


class TokenInfo(msgspec.Struct, frozen=True):
    """One output token as a client may see it."""

    id: int
    text: str
    """The token's own text; bytes that are no UTF-8 by themselves show as U+FFFD."""
    raw: bytes
    """The token's own bytes."""
    logprob: float | None = None
    top: tuple["TokenInfo", ...] = ()
    """Most likely alternatives, best first; their own ``top`` is empty."""


class Delta(msgspec.Struct, frozen=True):
    """New text of one choice. ``text`` may be empty while a character or a stop string is open."""

    choice: int
    text: str
    tokens: tuple[TokenInfo, ...] = ()
    finish_reason: str | None = None
    """``stop`` or ``length`` on the choice's last delta."""


def merged(deltas: Sequence[Delta]) -> Delta:
    """Consecutive ones of one choice as one."""
    text = "".join(delta.text for delta in deltas)
    tokens = tuple(token for delta in deltas for token in delta.tokens)
    return Delta(deltas[0].choice, text, tokens, deltas[-1].finish_reason)


class Usage(msgspec.Struct, frozen=True):
    """Tokens of a finished request."""

    prompt_tokens: int
    completion_tokens: int
    image_tokens: int
    cached_tokens: int
    """Prompt tokens that prefill found in its prefix cache."""


class Timeline(msgspec.Struct, frozen=True):
    """Where a request's time went, in seconds; of several choices or attempts, the last one's."""

    queue_s: float
    encode_s: float
    encode_transfer_s: float
    prefill_s: float
    kv_transfer_s: float
    ttft_s: float
    tpot_s: float
    total_s: float
    attempts: int
    route: tuple[str, ...]
    """Instances that worked on it, in order of stage."""
    is_degraded: bool = False
    """Whether it was served without the bounds that it named, as it allowed."""


class Final(msgspec.Struct, frozen=True):
    """Behind the last delta of the last choice."""

    usage: Usage
    timeline: Timeline


class Ticket(Protocol):
    """A place among the accepted requests, taken before any work."""

    taken_s: float
    """When it was taken: the request's arrival, in the service's monotonic time."""

    def release(self) -> None:
        """Give the place back. Idempotent; called on every exit."""
        ...


class Service(Protocol):
    """The path of a request, as a door sees it."""

    model: str
    """Name of the served model."""

    def admit(self, tenant: TenantId) -> Ticket:
        """Take a ticket before reading a body; raises Overloaded at once when there is none."""
        ...

    @property
    def is_choosy(self) -> bool:
        """Whether bounds decide who is let in, so that they are worth a look before the rest."""
        ...

    def check(self, tenant: TenantId, slo: Slo, ticket: Ticket) -> None:
        """Raise Overloaded if not even the smallest request with these bounds could be let in now:
        before the work of understanding it. ``slo`` may be laxer than what turns out later."""
        ...

    def generate(self, request: Request, ticket: Ticket) -> AsyncGenerator[Delta | Final, None]:
        """Run the request. Raises a TriptychError (before or between deltas). Closing the iterator
        early cancels the request everywhere; the ticket is released on every exit."""
        ...

    async def cancel(self, request: RequestId, tenant: TenantId) -> bool:
        """End a running request of the same tenant; whether there was one."""
        ...

    def is_ready(self) -> bool:
        """Whether every stage has an instance that serves."""
        ...

    def metrics(self) -> bytes:
        """Prometheus text exposition of the router and of what it knows of the instances."""
        ...
