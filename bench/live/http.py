"""Any OpenAI-compatible server over HTTP: chat completions as server-sent events.

One connection a request, as strangers have, or kept ones, as libraries have. Knows which fields are
OpenAI's own, which every open-source server knows, and which are ours.
"""

import json
from collections.abc import Mapping
from typing import Any

import msgspec

from bench.client import Kept, Target, count, events, get, picture_part
from bench.live.sender import Answer, OnTokens
from bench.live.turns import Ask, Turn

_PHASES = ("queue", "encode", "encode_transfer", "prefill", "kv_transfer")


class HttpSender:
    """A server at ``target``. ``is_plain``: nothing is said that only Triptych knows.
    ``is_strict``: nothing that OpenAI's own API does not know, so answers may end early.
    ``keeps``: connections serve one request after the other."""

    def __init__(
        self,
        target: Target,
        *,
        is_plain: bool = False,
        is_strict: bool = False,
        keeps: bool = False,
    ) -> None:
        self._target = target
        self._kept = Kept() if keeps else None
        self._has_slo = not (is_plain or is_strict)
        self._is_strict = is_strict

    async def start(self) -> None:
        """Ask for the model's name unless it is given."""
        if not self._target.model:
            status, body = await get(self._target, "/v1/models")
            if status != 200:
                raise ValueError(f"{self._target.url}/models answered {status}: {body[:200]!r}")
            name = json.loads(body)["data"][0]["id"]
            self._target = self._target.serving(name)

    def prepare(self, ask: Ask) -> bytes:
        """The body."""
        body: dict[str, Any] = {
            "model": self._target.model,
            "messages": [_message(turn) for turn in ask.turns],
            "max_tokens": ask.num_output,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if not self._is_strict:
            body |= {"ignore_eos": True, "return_token_ids": True}
        if self._has_slo:
            body |= {"timeout_s": ask.timeout_s}
            body |= {"slo": {"class": ask.slo}} if ask.slo else {}
        return msgspec.json.encode(body)

    async def send(self, prepared: bytes, on_tokens: OnTokens) -> Answer:
        """Send a body; see ``sender.Sender``."""
        text: list[str] = []
        usage: Mapping[str, Any] = {}
        told: Mapping[str, Any] = {}
        async for event in events(self._target, prepared, self._kept):
            if num_tokens := count(event):
                on_tokens(num_tokens)
            for choice in event.get("choices") or ():
                text.append((choice.get("delta") or {}).get("content") or "")
            usage = event.get("usage") or usage
            told = event.get("triptych") or told
        return _answer("".join(text), usage, told)

    async def close(self) -> None:
        """Close what is kept; other connections ended with their requests."""
        if self._kept is not None:
            await self._kept.close()


def _message(turn: Turn) -> dict[str, Any]:
    if len(turn.parts) == 1 and isinstance(turn.parts[0], str):
        return {"role": turn.role, "content": turn.parts[0]}
    parts = [
        {"type": "text", "text": part} if isinstance(part, str) else picture_part(part)
        for part in turn.parts
    ]
    return {"role": turn.role, "content": parts}


def _answer(text: str, usage: Mapping[str, Any], told: Mapping[str, Any]) -> Answer:
    details = usage.get("prompt_tokens_details") or {}
    times_ms = told.get("timeline_ms") or {}
    return Answer(
        text=text,
        prompt_tokens=usage.get("prompt_tokens") or 0,
        completion_tokens=usage.get("completion_tokens") or 0,
        image_tokens=details.get("image_tokens") or 0,
        cached_tokens=details.get("cached_tokens") or 0,
        attempts=told.get("attempts") or 1,
        route=tuple(told.get("route") or ()),
        phases={name: times_ms[name] / 1000 for name in _PHASES if name in times_ms},
    )
