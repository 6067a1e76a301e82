"""Bodies of ``POST /v1/chat/completions``: OpenAI's words to a ``Request``.

Unknown fields are ignored and reported by name. Pictures come in data: URLs only. Blocking work of
milliseconds on large bodies; call it off the event loop. Knows no socket.
"""

import base64
import binascii
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from router.doors.intake import (
    ECHO_CHARACTERS,
    Intake,
    Options,
    Positive,
    SloOptions,
    laxest,
    raise_invalid,
)
from triptych.core.errors import RequestError
from triptych.core.ids import TenantId
from triptych.core.request import ImagePart, Message, Part, Picture, Request, Slo, TextPart

MAX_IGNORED_NAMES = 16
_DEFAULT_TEMPERATURE = 1.0
"""OpenAI's, where the field is absent."""


class TextContent(msgspec.Struct, frozen=True, tag="text"):
    """``{"type": "text", "text": ...}``"""

    text: str


class ImageUrl(msgspec.Struct, frozen=True):
    """``{"url": "data:image/png;base64,...", "detail": ...}``; detail is of no effect."""

    url: str
    detail: str | None = None


class ImageContent(msgspec.Struct, frozen=True, tag="image_url"):
    """``{"type": "image_url", "image_url": {"url": ...}}``"""

    image_url: ImageUrl


class ChatMessage(msgspec.Struct, frozen=True):
    """One message; ``content`` may be absent in an assistant's turn."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextContent | ImageContent] | None = None


class StreamOptions(msgspec.Struct, frozen=True):
    """``stream_options``"""

    include_usage: bool | None = None


class ChatBody(Options, frozen=True, kw_only=True):
    """The body; see ``intake.Options`` for the fields that every door knows."""

    messages: list[ChatMessage]
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0)] | None = None
    max_completion_tokens: Positive | None = None
    return_token_ids: bool | None = None


class _Bounds(msgspec.Struct, frozen=True):
    """What of a body decides whether the rest is read."""

    slo: SloOptions | None = None


class Chat(msgspec.Struct, frozen=True):
    """A body understood: the request, and how the client wants the answer."""

    request: Request
    is_stream: bool
    has_usage: bool
    """Usage in a chunk of its own at the end of a stream."""
    has_logprobs: bool
    has_token_ids: bool
    ignored: tuple[str, ...]
    """Names of fields that had no effect."""


_DECODER = msgspec.json.Decoder(ChatBody)
_BOUNDS = msgspec.json.Decoder(_Bounds)
_NAMES = msgspec.json.Decoder(dict[str, msgspec.Raw])
_KNOWN = frozenset(field.encode_name for field in msgspec.structs.fields(ChatBody))


def parse_chat(data: bytes, tenant: TenantId, model: str, intake: Intake) -> Chat:
    """The request in ``data``; raises RequestError with the path of the first wrong value."""
    body, ignored = _decode(data)
    if body.model and body.model != model:
        raise RequestError("no such model", field="model", status="not_found")
    if body.top_logprobs is not None and not body.logprobs:
        raise RequestError("needs logprobs to be true", field="top_logprobs")
    messages = intake.messages(_messages(body))
    pictures = tuple(_pictures(body, intake))
    logprobs = (body.top_logprobs or 0) if body.logprobs else -1
    return Chat(
        request=intake.request(tenant, messages, pictures, _options(body), logprobs),
        is_stream=bool(body.stream),
        has_usage=bool(body.stream_options and body.stream_options.include_usage),
        has_logprobs=bool(body.logprobs),
        has_token_ids=bool(body.return_token_ids),
        ignored=ignored,
    )


def peek_slo(data: bytes) -> Slo | None:
    """The bounds that a body names, at the cost of skipping the rest; see ``intake.laxest``. None
    if they cannot be read: what is wrong with a body is told by ``parse_chat``."""
    try:
        return laxest(_BOUNDS.decode(data).slo)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, RequestError):
        return None


def _decode(data: bytes) -> tuple[ChatBody, tuple[str, ...]]:
    try:
        body = _DECODER.decode(data)
        names = _NAMES.decode(data)
    except msgspec.ValidationError as error:
        raise_invalid(error)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise RequestError("the body is not JSON") from None
    except RecursionError:
        raise RequestError("the body is nested too deeply") from None
    return body, tuple(_unknown(names))[:MAX_IGNORED_NAMES]


def _unknown(names: dict[str, Any]) -> list[str]:
    """Names fit for a header: a client could write anything there."""
    return [
        name[:64]
        for name in names
        if name not in _KNOWN and name.isascii() and name.replace("-", "_").isidentifier()
    ]


def _options(body: ChatBody) -> Options:
    """The body's options with OpenAI's own names and defaults resolved."""
    values = {name: getattr(body, name) for name in Options.__struct_fields__}
    if body.temperature is None:
        values["temperature"] = _DEFAULT_TEMPERATURE
    if body.max_completion_tokens is not None:
        values["max_tokens"] = body.max_completion_tokens
    return Options(**values)


def _messages(body: ChatBody) -> list[Message]:
    """Messages with their pictures numbered in order."""
    messages = []
    num_pictures = 0
    for message in body.messages:
        content = message.content or ""
        parts: list[Part] = []
        for part in [TextContent(content)] if isinstance(content, str) else content:
            if isinstance(part, TextContent):
                parts.append(TextPart(part.text))
            else:
                parts.append(ImagePart(num_pictures))
                num_pictures += 1
        role = "system" if message.role == "developer" else message.role
        messages.append(Message(role, tuple(parts)))
    return messages


def _pictures(body: ChatBody, intake: Intake) -> list[Picture]:
    pictures = []
    for i, message in enumerate(body.messages):
        if not isinstance(message.content, list):
            continue
        for j, part in enumerate(message.content):
            if isinstance(part, ImageContent):
                field = f"messages[{i}].content[{j}].image_url.url"
                pictures.append(intake.picture(_data(part.image_url.url, intake, field), field))
    return pictures


def _data(url: str, intake: Intake, field: str) -> bytes:
    """The bytes in a data: URL. What its media type claims is not believed."""
    head, comma, text = url.partition(",")
    if not head[:5].lower() == "data:":
        raise RequestError(
            "only data: URLs are accepted, remote pictures are not fetched", field=field
        )
    if not comma or not head.lower().endswith(";base64") or len(head) > ECHO_CHARACTERS:
        raise RequestError("is not a base64 data: URL", field=field)
    limit = intake.limits.max_picture_bytes
    if len(text) // 4 * 3 > limit + 3:
        raise RequestError(f"the limit is {limit} bytes", field=field, status="too_large")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise RequestError("is not valid base64", field=field) from None
