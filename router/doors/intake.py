"""What a client may ask, whichever door it came through: ranges, limits, defaults.

Makes a ``Request`` of options and messages, or a RequestError that names the field. Knows no wire
format and no tokenizer. Everything is checked before the work it bounds.
"""

import math
import secrets
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import msgspec
from msgspec import Meta

from triptych.core.clock import Clock
from triptych.core.config import Config, LimitsConfig
from triptych.core.errors import RequestError
from triptych.core.ids import RequestId, TenantId
from triptych.core.metrics import SLO_CLASSES, slo_class
from triptych.core.request import (
    ImagePart,
    Message,
    Picture,
    Request,
    Sampling,
    Slo,
    StopRule,
    TextPart,
)
from triptych.inputs.images import probe
from triptych.inputs.model_card import ModelCard

Positive = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
TokenNumber = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Milliseconds = Annotated[float, Meta(gt=0, le=1e9)]
ECHO_CHARACTERS = 300
"""An error message that repeats a client's words ends here."""
_BY_PICTURES = "multi-image"
"""The class whose bound depends on how many pictures there are."""


class SloOptions(msgspec.Struct, frozen=True):
    """The latency a client wants: a class, bounds of its own, or a class with other bounds."""

    name: str | None = msgspec.field(default=None, name="class")
    ttft_ms: Milliseconds | None = None
    tpot_ms: Milliseconds | None = None
    degrade: bool = False
    """To be served without the bounds rather than refused."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What a client may set. ``None`` takes the default."""

    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    min_p: Fraction | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: Seed | None = None
    max_tokens: Positive | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[TokenNumber] | None = None
    ignore_eos: bool | None = None
    n: Positive | None = None
    slo: SloOptions | None = None
    priority: Annotated[int, Meta(ge=-100, le=100)] = 0
    timeout_s: Annotated[float, Meta(gt=0)] | None = None


class Intake:
    """Checks and completes what the doors read. No state; any thread may call it."""

    def __init__(self, config: Config, card: ModelCard, clock: Clock) -> None:
        self.limits: LimitsConfig = config.limits
        self.max_positions = card.max_positions
        self._router = config.router
        self._card = card
        self._clock = clock

    def messages(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """The conversation if its size is within the limits."""
        limits = self.limits
        if not messages:
            raise RequestError("needs at least one message", field="messages")
        _at_most(len(messages), limits.max_messages, "messages", "messages")
        parts = [part for message in messages for part in message.parts]
        text_bytes = sum(len(part.text.encode()) for part in parts if isinstance(part, TextPart))
        _at_most(text_bytes, limits.max_text_bytes, "bytes of text", "messages", "too_large")
        pictures = sum(isinstance(part, ImagePart) for part in parts)
        _at_most(pictures, limits.max_pictures, "pictures", "messages")
        # An empty part is a dozen bytes to send and a lot to carry around.
        _at_most(len(parts), 4 * limits.max_messages, "parts", "messages")
        return tuple(messages)

    def picture(self, data: bytes, field: str) -> Picture:
        """The picture if its header is readable and within the limits."""
        return probe(data, self.limits, field)

    def request(
        self,
        tenant: TenantId,
        messages: tuple[Message, ...],
        pictures: tuple[Picture, ...],
        options: Options,
        logprobs: int = -1,
    ) -> Request:
        """The request; its time runs from now."""
        choices = options.n or 1
        _at_most(choices, self.limits.max_choices, "choices", "n")
        return Request(
            id=RequestId(f"req-{secrets.token_hex(12)}"),
            tenant=tenant,
            messages=messages,
            pictures=pictures,
            sampling=self._sampling(options, logprobs),
            stop=self._stop(options),
            slo=_slo(options.slo, len(pictures)),
            deadline_s=self._clock.now() + self._timeout_s(options.timeout_s),
            num_choices=choices,
            priority=options.priority,
        )

    def _sampling(self, options: Options, logprobs: int) -> Sampling:
        _at_most(logprobs, self.limits.max_logprobs, "alternatives", "top_logprobs")
        asked = msgspec.structs.asdict(options)
        values = {
            name: asked[name]
            for name in Sampling.__struct_fields__
            if asked.get(name) is not None and name != "logprobs"
        }
        # Nobody asked for the same answer twice: any seed will do, and the request carries it.
        values.setdefault("seed", secrets.randbits(31))
        values["top_k"] = max(0, values.get("top_k", 0))
        return Sampling(**values, logprobs=logprobs)

    def _stop(self, options: Options) -> StopRule:
        limits = self.limits
        strings = [options.stop] if isinstance(options.stop, str) else options.stop or []
        _at_most(len(strings), limits.max_stop_strings, "stop strings", "stop")
        for string in strings:
            if not string:
                raise RequestError("a stop string must not be empty", field="stop")
            _at_most(len(string.encode()), limits.max_stop_bytes, "bytes", "stop")
        tokens = options.stop_token_ids or []
        _at_most(len(tokens), limits.max_stop_strings, "stop tokens", "stop_token_ids")
        if max(tokens, default=0) >= self._card.vocab_size:
            raise RequestError("no such token", field="stop_token_ids")
        max_tokens = options.max_tokens or min(
            self._router.default_max_tokens, limits.max_output_tokens
        )
        _at_most(max_tokens, limits.max_output_tokens, "output tokens", "max_tokens")
        ends = () if options.ignore_eos else self._card.eos_token_ids
        return StopRule(max_tokens, (*ends, *tokens), tuple(strings))

    def _timeout_s(self, asked_s: float | None) -> float:
        if asked_s is None:
            return self.limits.default_deadline_s
        if asked_s > self.limits.max_deadline_s:
            raise RequestError(f"at most {self.limits.max_deadline_s:g} seconds", field="timeout_s")
        return asked_s


def laxest(options: SloOptions | None) -> Slo:
    """The bounds of a request of which nothing else is known: never stricter than what is found
    when its pictures are counted. Raises RequestError for an unknown class."""
    slo = _slo(options, 0)
    if options is None or options.name != _BY_PICTURES or options.ttft_ms is not None:
        return slo
    return msgspec.structs.replace(slo, ttft_s=None)


def convert_options(values: dict[str, Any]) -> Options:
    """Options from plain values of a binary protocol, which (unlike JSON) may hold a NaN."""
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise RequestError("must be a finite number", field=name)
    try:
        return msgspec.convert(values, Options)
    except msgspec.ValidationError as error:
        raise_invalid(error)


def raise_invalid(error: msgspec.ValidationError) -> NoReturn:
    """The RequestError for a value of the wrong type or range: msgspec ends its message with the
    value's path, ``... - at `$.a[0].b```."""
    message, _, path = str(error).partition(" - at `")
    field = path.rstrip("`").removeprefix("$").removeprefix(".")
    raise RequestError(message[:ECHO_CHARACTERS], field=field[:ECHO_CHARACTERS]) from None


def _slo(options: SloOptions | None, num_pictures: int) -> Slo:
    if options is None:
        return Slo()
    base = Slo("custom")
    if options.name is not None:
        if options.name not in SLO_CLASSES:
            raise RequestError(f"must be one of {', '.join(SLO_CLASSES)}", field="slo.class")
        base = slo_class(options.name, num_pictures)
    return Slo(
        base.name,
        base.ttft_s if options.ttft_ms is None else options.ttft_ms / 1000,
        base.tpot_s if options.tpot_ms is None else options.tpot_ms / 1000,
        may_degrade=options.degrade,
    )


def _at_most(count: int, limit: int, what: str, field: str, status: str = "invalid") -> None:
    if count > limit:
        raise RequestError(f"{count} {what}, the limit is {limit}", field=field, status=status)
