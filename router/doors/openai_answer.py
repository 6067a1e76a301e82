"""Deltas to OpenAI's words: a stream of chunks, one whole body, an error.

Knows shapes only; does not know how bytes reach the client.
"""

import time

import msgspec

from router.answer import Delta, Final, Timeline, TokenInfo, Usage
from router.doors.openai_request import Chat
from triptych.core.errors import Overloaded, RequestError, TriptychError, Unauthenticated
from triptych.wire.status import http_status


class TopLogprob(msgspec.Struct, frozen=True):
    """One token and its log probability."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(msgspec.Struct, frozen=True):
    """A drawn token with its alternatives."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class Logprobs(msgspec.Struct, frozen=True):
    """``choices[].logprobs``"""

    content: list[TokenLogprob]
    refusal: None = None


class ChatDelta(msgspec.Struct, frozen=True, omit_defaults=True):
    """``choices[].delta``"""

    role: str = ""
    content: str | None = None


class AnswerMessage(msgspec.Struct, frozen=True):
    """``choices[].message``"""

    content: str
    role: str = "assistant"
    refusal: None = None


class ChunkChoice(msgspec.Struct, frozen=True):
    """One choice in a chunk."""

    index: int
    delta: ChatDelta
    logprobs: Logprobs | None = None
    finish_reason: str | None = None
    token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET


class BodyChoice(msgspec.Struct, frozen=True):
    """One choice in a whole body."""

    index: int
    message: AnswerMessage
    finish_reason: str
    logprobs: Logprobs | None = None
    token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET


class AnswerUsage(msgspec.Struct, frozen=True):
    """``usage``"""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, int]


class Chunk(msgspec.Struct, frozen=True, kw_only=True):
    """``chat.completion.chunk``; ``triptych`` is in the last one only."""

    id: str
    kind: str = msgspec.field(default="chat.completion.chunk", name="object")
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: AnswerUsage | msgspec.UnsetType | None = msgspec.UNSET
    triptych: dict[str, object] | msgspec.UnsetType = msgspec.UNSET


class Body(msgspec.Struct, frozen=True, kw_only=True):
    """``chat.completion``"""

    id: str
    kind: str = msgspec.field(default="chat.completion", name="object")
    created: int
    model: str
    choices: list[BodyChoice]
    usage: AnswerUsage
    triptych: dict[str, object]


class ChunkWriter:
    """Turns the parts of one answer into chunks. The chunk that ends the answer waits for the
    usage and timeline behind it, so that no chunk of an odd shape is needed to carry them."""

    def __init__(self, chat: Chat, model: str) -> None:
        self._chat = chat
        self._model = model
        self._id = answer_id(chat)
        self._created = int(time.time())
        self._last: Chunk | None = None
        self.is_complete = False

    def begin(self) -> list[Chunk]:
        """One chunk per choice that names the role."""
        role = ChatDelta("assistant", "")
        return [self._chunk([ChunkChoice(i, role)]) for i in range(self._chat.request.num_choices)]

    def push(self, part: Delta | Final) -> list[Chunk]:
        """The chunks that can be sent now."""
        held, self._last = self._last, None
        chunks = [] if held is None else [held]
        if isinstance(part, Final):
            return self._end(chunks, part)
        choice = self._choice(part)
        if part.finish_reason is not None:
            self._last = self._chunk([choice])
        elif part.text or choice.logprobs or choice.token_ids:
            chunks.append(self._chunk([choice]))
        return chunks

    def _choice(self, delta: Delta) -> ChunkChoice:
        return ChunkChoice(
            index=delta.choice,
            delta=ChatDelta(content=delta.text),
            logprobs=_logprobs(delta.tokens) if self._chat.has_logprobs else None,
            finish_reason=delta.finish_reason,
            token_ids=_ids(delta.tokens) if self._chat.has_token_ids else msgspec.UNSET,
        )

    def _end(self, chunks: list[Chunk], final: Final) -> list[Chunk]:
        self.is_complete = True
        if self._chat.has_usage or not chunks:
            last = self._chunk([])
            usage = _usage(final.usage) if self._chat.has_usage else msgspec.UNSET
            chunks.append(msgspec.structs.replace(last, usage=usage))
        last = msgspec.structs.replace(chunks.pop(), triptych=_timeline(final.timeline))
        return [*chunks, last]

    def _chunk(self, choices: list[ChunkChoice]) -> Chunk:
        return Chunk(
            id=self._id,
            created=self._created,
            model=self._model,
            choices=choices,
            usage=None if self._chat.has_usage else msgspec.UNSET,
        )


class BodyWriter:
    """Collects the parts of one answer into a whole body."""

    def __init__(self, chat: Chat, model: str) -> None:
        self._chat = chat
        self._model = model
        self._deltas: list[list[Delta]] = [[] for _ in range(chat.request.num_choices)]

    def push(self, delta: Delta) -> None:
        """Take the next delta of a choice."""
        self._deltas[delta.choice].append(delta)

    def body(self, final: Final) -> Body:
        """The whole answer."""
        return Body(
            id=answer_id(self._chat),
            created=int(time.time()),
            model=self._model,
            choices=[self._choice(index, deltas) for index, deltas in enumerate(self._deltas)],
            usage=_usage(final.usage),
            triptych=_timeline(final.timeline),
        )

    def _choice(self, index: int, deltas: list[Delta]) -> BodyChoice:
        tokens = tuple(token for delta in deltas for token in delta.tokens)
        return BodyChoice(
            index=index,
            message=AnswerMessage("".join(delta.text for delta in deltas)),
            finish_reason=deltas[-1].finish_reason or "stop",
            logprobs=_logprobs(tokens) if self._chat.has_logprobs else None,
            token_ids=_ids(tokens) if self._chat.has_token_ids else msgspec.UNSET,
        )


def answer_id(chat: Chat) -> str:
    """OpenAI's name of an answer."""
    return f"chatcmpl-{chat.request.id.removeprefix('req-')}"


def error_object(error: TriptychError) -> dict[str, object]:
    """``{"error": {...}}`` with the public text only."""
    status = http_status(error)
    kind = "server_error" if status >= 500 else "invalid_request_error"
    code = error.code
    if isinstance(error, Unauthenticated):
        code = "invalid_api_key"
    elif isinstance(error, Overloaded):
        kind = "rate_limit_error"
    elif isinstance(error, RequestError) and error.status != "invalid":
        code = error.status
    param = error.field or None if isinstance(error, RequestError) else None
    return {"error": {"message": error.public, "type": kind, "param": param, "code": code}}


def _logprobs(tokens: tuple[TokenInfo, ...]) -> Logprobs | None:
    if not tokens:
        return None
    return Logprobs(
        [
            TokenLogprob(
                token.text,
                token.logprob or 0.0,
                list(token.raw),
                [TopLogprob(top.text, top.logprob or 0.0, list(top.raw)) for top in token.top],
            )
            for token in tokens
        ]
    )


def _ids(tokens: tuple[TokenInfo, ...]) -> list[int]:
    return [token.id for token in tokens]


def _usage(usage: Usage) -> AnswerUsage:
    return AnswerUsage(
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.prompt_tokens + usage.completion_tokens,
        {"cached_tokens": usage.cached_tokens, "image_tokens": usage.image_tokens},
    )


def _timeline(timeline: Timeline) -> dict[str, object]:
    """Milliseconds by part, and who worked."""
    parts = {
        name.removesuffix("_s"): round(value * 1000, 3)
        for name, value in msgspec.structs.asdict(timeline).items()
        if name.endswith("_s")
    }
    return {
        "timeline_ms": parts,
        "attempts": timeline.attempts,
        "route": list(timeline.route),
        **({"degraded": True} if timeline.is_degraded else {}),
    }
