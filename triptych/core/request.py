"""What is asked: pictures, prompt, sampling, stop rule, deadlines. Values only.

``Request`` is what a door makes of a client's words. ``Prompt`` is what the model sees.
"""

import msgspec

from triptych.core.ids import ContentHash, RequestId, TenantId


class Picture(msgspec.Struct, frozen=True):
    """An encoded picture as it came, and its size as the header says (after EXIF rotation)."""

    data: bytes
    format: str
    """``PNG``, ``JPEG``, ``WEBP`` or ``GIF`` (first frame)."""
    width: int
    height: int


class TextPart(msgspec.Struct, frozen=True, tag="text"):
    """A piece of text in a message."""

    text: str


class ImagePart(msgspec.Struct, frozen=True, tag="image"):
    """The place of the ``index``-th picture of the request."""

    index: int


Part = TextPart | ImagePart


class Message(msgspec.Struct, frozen=True):
    """One turn of a conversation."""

    role: str
    parts: tuple[Part, ...]


class Sampling(msgspec.Struct, frozen=True):
    """How a token is drawn: a pure function of (these values, seed, position, logits).

    ``temperature`` 0 is greedy. ``top_k`` 0, ``top_p`` 1 and ``min_p`` 0 are off. Penalties follow
    the field's usual definitions: repetition over prompt and output, presence and frequency over
    the output only.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    logprobs: int = -1
    """Number of alternatives to report with each token; 0 reports the token's own; -1 none."""

    @property
    def needs_history(self) -> bool:
        """Whether drawing a token reads the tokens before it."""
        return (
            self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
        )


class StopRule(msgspec.Struct, frozen=True):
    """When a sequence ends. Stop strings act at the router, the rest in the engine."""

    max_tokens: int
    token_ids: tuple[int, ...] = ()
    """End-of-sequence and stop tokens; empty if ``ignore_eos``."""
    strings: tuple[str, ...] = ()


class Slo(msgspec.Struct, frozen=True):
    """What latency the client was promised. ``None`` means no bound."""

    name: str = "batch"
    ttft_s: float | None = None
    tpot_s: float | None = None
    may_degrade: bool = False
    """Whether to be served without bounds is better than to be refused."""

    @property
    def is_bounded(self) -> bool:
        """Whether there is any bound."""
        return self.ttft_s is not None or self.tpot_s is not None


class Item(msgspec.Struct, frozen=True):
    """One picture's place in a prompt: tokens ``[offset, offset + num_tokens)`` are its own."""

    key: ContentHash
    offset: int
    num_tokens: int
    grid: tuple[int, int, int]
    """Patches (time, height, width) before merging, as the vision tower sees them."""

    @property
    def end(self) -> int:
        """First position behind the item."""
        return self.offset + self.num_tokens


class Prompt(msgspec.Struct, frozen=True):
    """Token ids with every visual placeholder already repeated to its exact length."""

    token_ids: tuple[int, ...]
    items: tuple[Item, ...] = ()
    """In order of offset, never overlapping."""

    def __len__(self) -> int:
        return len(self.token_ids)


class Request(msgspec.Struct, frozen=True):
    """One request as a door understood it."""

    id: RequestId
    tenant: TenantId
    messages: tuple[Message, ...]
    pictures: tuple[Picture, ...]
    sampling: Sampling
    stop: StopRule
    slo: Slo
    deadline_s: float
    """Point in the door's monotonic time after which nothing is of use."""
    num_choices: int = 1
    priority: int = 0
    """Higher goes first among the requests of its tenant."""
