"""What every server is asked, over the same client, with what strangers' servers lack made good.

``transformers serve`` refuses fields that it does not know and ends a stream without ``[DONE]``;
beside that all servers get the same bytes but for the model's name. Remembers the answers' texts,
so that it can be seen whether servers did the same work.
"""

import json
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import msgspec

from bench.client import Target, count, events, get, picture_part
from bench.live.sender import Answer, OnTokens
from bench.live.turns import Ask

UNKNOWN_TO_TRANSFORMERS = ("ignore_eos", "return_token_ids")


class Prepared(NamedTuple):
    """A request as it is sent, and what it asks."""

    body: bytes
    question: str


class PeerSender:
    """A server at ``target``; ``left_out``: fields that it refuses."""

    def __init__(self, target: Target, left_out: tuple[str, ...] = ()) -> None:
        self._target, self._left_out = target, left_out
        self.texts: dict[str, str] = {}
        """Answers by question; questions of one run differ."""

    async def start(self) -> None:
        """Ask for the model's name unless it is known."""
        if not self._target.model:
            status, body = await get(self._target, "/v1/models")
            if status != 200:
                raise ValueError(f"{self._target.url}/models answered {status}: {body[:200]!r}")
            self._target = self._target.serving(json.loads(body)["data"][0]["id"])

    def prepare(self, ask: Ask) -> Prepared:
        """One user turn: its pictures, then its text."""
        (turn,) = ask.turns
        content = [
            {"type": "text", "text": part} if isinstance(part, str) else picture_part(part)
            for part in turn.parts
        ]
        body = {
            "model": self._target.model,
            "messages": [{"role": turn.role, "content": content}],
            "max_tokens": ask.num_output,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "ignore_eos": True,
            "return_token_ids": True,
        }
        for name in self._left_out:
            del body[name]
        question = " ".join(part for part in turn.parts if isinstance(part, str))
        return Prepared(msgspec.json.encode(body), question)

    async def send(self, prepared: Prepared, on_tokens: OnTokens) -> Answer:
        """See ``bench.live.sender.Sender``."""
        text: list[str] = []
        usage: dict[str, Any] = {}
        async for event in _to_the_end(events(self._target, prepared.body)):
            if num_tokens := count(event):
                on_tokens(num_tokens)
            for choice in event.get("choices") or ():
                text.append((choice.get("delta") or {}).get("content") or "")
            usage = event.get("usage") or usage
        self.texts[prepared.question] = "".join(text)
        return Answer(
            text="".join(text),
            prompt_tokens=usage.get("prompt_tokens") or 0,
            completion_tokens=usage.get("completion_tokens") or 0,
        )

    async def close(self) -> None:
        """Every connection ended with its request."""


async def _to_the_end(found: AsyncIterator[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
    """Events up to ``[DONE]``, or to the end of a stream that told why the answer ended."""
    is_finished = False
    try:
        async for event in found:
            is_finished |= any(one.get("finish_reason") for one in event.get("choices") or ())
            yield event
    except EOFError:
        if not is_finished:
            raise
