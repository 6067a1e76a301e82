"""What a client receives, as values. Knows the messages of the wire and nothing of calls."""

import msgspec

from triptych.v1 import inference_pb2 as pb


class Token(msgspec.Struct, frozen=True):
    """One output token."""

    id: int
    raw: bytes
    """The token's own bytes, possibly a part of a character."""
    logprob: float | None = None
    top: tuple["Token", ...] = ()
    """Most likely alternatives, best first."""


class Usage(msgspec.Struct, frozen=True):
    """Tokens of a finished request."""

    prompt_tokens: int
    completion_tokens: int
    image_tokens: int
    cached_tokens: int


class Timeline(msgspec.Struct, frozen=True):
    """Where the request's time went on the server, in seconds."""

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
    is_degraded: bool = False
    """Served without the bounds that it named."""


class Final(msgspec.Struct, frozen=True):
    """What comes behind the last token."""

    finish_reasons: tuple[str, ...]
    """``stop`` or ``length``, one per choice."""
    usage: Usage
    timeline: Timeline


class Part(msgspec.Struct, frozen=True):
    """A piece of an answer: new text of one choice or, in the last part only, ``final``."""

    choice: int = 0
    text: str = ""
    tokens: tuple[Token, ...] = ()
    finish_reason: str | None = None
    final: Final | None = None


def part_of(message: pb.GenerateResponse) -> Part:
    """The part in a ``delta`` or ``result`` message."""
    if message.WhichOneof("kind") == "result":
        return Part(final=_final(message.result))
    delta = message.delta
    return Part(
        choice=delta.choice,
        text=delta.text,
        tokens=tuple(_token(token) for token in delta.tokens),
        finish_reason=delta.finish_reason or None,
    )


def _token(token: pb.OutputToken) -> Token:
    return Token(
        id=token.id,
        raw=token.raw,
        logprob=token.logprob if token.HasField("logprob") else None,
        top=tuple(_token(alternative) for alternative in token.top),
    )


def _final(result: pb.GenerateResult) -> Final:
    times = {name: getattr(result.timeline, name) for name in Timeline.__struct_fields__}
    return Final(
        finish_reasons=tuple(result.finish_reasons),
        usage=Usage(**{name: getattr(result.usage, name) for name in Usage.__struct_fields__}),
        timeline=Timeline(**{**times, "route": tuple(times["route"])}),
    )
