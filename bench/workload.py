"""What a workload is made of: requests with arrival times, as numbers only.

One description for the simulator, the live client and the planner. Text is a seed and a length,
a picture a number and a size, so that equal beginnings and equal pictures are seen to be equal, and
a trace of a million requests is small. Knows no tokenizer, no pixels, no server.
"""

from collections.abc import Iterator
from typing import Protocol

import msgspec

from triptych.core.ids import TenantId

SIDE = 28
"""Pixels of a visual token's side in the models of the Qwen-VL family: patches of 14, merged 2x2.
Sources draw sizes that are multiples of it, so that pixels and tokens say the same."""


class Text(msgspec.Struct, frozen=True, tag="text"):
    """Tokens that are a function of ``seed`` and their place: a longer text of the same seed
    begins with the shorter one."""

    seed: int
    num_tokens: int


class Image(msgspec.Struct, frozen=True, tag="image"):
    """A picture. Equal ``content`` and size: the same picture."""

    content: int
    width: int
    """Pixels; a multiple of ``SIDE``."""
    height: int

    @property
    def num_tokens(self) -> int:
        """Visual tokens."""
        return (self.width // SIDE) * (self.height // SIDE)


Part = Text | Image


class Arrival(msgspec.Struct, frozen=True):
    """One request."""

    at_s: float
    """Seconds after the start; ignored where ``after_s`` is given."""
    parts: tuple[Part, ...]
    """The whole prompt, earlier turns of its conversation included."""
    num_output: int
    """Exactly so many tokens are drawn."""
    answer: int = 0
    """Seed of the answer: a later turn quotes it as ``Text(answer, num_output)``."""
    tenant: TenantId = TenantId("public")
    slo: str = "interactive"
    """A name of ``core.metrics.SLO_CLASSES``."""
    priority: int = 0
    """Higher goes first."""
    session: str = ""
    """Requests of one conversation or of one closed-loop client, in order."""
    after_s: float | None = None
    """Arrives so long after the answer before it in its session has ended (closed loop)."""

    @property
    def num_text(self) -> int:
        """Text tokens of the prompt."""
        return sum(part.num_tokens for part in self.parts if isinstance(part, Text))

    @property
    def images(self) -> tuple[Image, ...]:
        """Pictures in the order of the prompt."""
        return tuple(part for part in self.parts if isinstance(part, Image))

    @property
    def num_prompt(self) -> int:
        """Tokens of the prompt, without a chat template's own."""
        return sum(part.num_tokens for part in self.parts)


class Workload(Protocol):
    """A source of requests. Equal arguments give equal requests."""

    name: str

    def arrivals(self, rate: float | None, duration_s: float, seed: int) -> Iterator[Arrival]:
        """Requests of ``duration_s`` seconds in order of ``at_s``, those of a session in order of
        their turns; ``rate`` per second in all, or the source's own rate if None."""
        ...
