"""One turn of a conversation over HTTP: what was said, when each token came, what the server tells.

Beside ``bench.client``, which sends many requests at given times, this sends one and waits.
"""

import asyncio
import json
from typing import Any

import msgspec

from bench.client import Target, count, events

Message = dict[str, Any]
"""A message as OpenAI's API spells it."""


class Reply(msgspec.Struct, frozen=True):
    """An answer. Times in seconds since the request was sent."""

    text: str
    token_times_s: tuple[float, ...]
    prompt_tokens: int
    cached_tokens: int
    """Prompt tokens that the server found in its prefix cache."""
    timeline_ms: dict[str, float]
    """The server's own account, by part."""
    route: tuple[str, ...]
    """Instances that worked on it."""

    @property
    def ttft_s(self) -> float:
        """Sending to the first token."""
        return self.token_times_s[0]


class Ending(msgspec.Struct, frozen=True):
    """How long an answer may become."""

    max_tokens: int
    is_fixed: bool = False
    """Exactly ``max_tokens``: the end of sequence is ignored."""


async def ask(target: Target, messages: list[Message], ending: Ending) -> Reply:
    """Ask greedily and read the whole answer. Raises what ``events`` raises, and TimeoutError."""
    body = json.dumps(
        {
            "model": target.model,
            "messages": messages,
            "max_tokens": ending.max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "ignore_eos": ending.is_fixed,
            "return_token_ids": True,
        }
    ).encode()
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    times: list[float] = []
    text = ""
    usage: dict[str, Any] = {}
    told: dict[str, Any] = {}
    async with asyncio.timeout(target.timeout_s):
        async for event in events(target, body):
            times.extend([loop.time() - began_s] * count(event))
            for choice in event["choices"]:
                text += choice["delta"].get("content") or ""
            usage = event.get("usage") or usage
            told = event.get("triptych") or told
    if not times:
        raise ValueError("an answer without tokens")
    return Reply(
        text=text,
        token_times_s=tuple(times),
        prompt_tokens=usage.get("prompt_tokens", 0),
        cached_tokens=usage.get("prompt_tokens_details", {}).get("cached_tokens", 0),
        timeline_ms=told.get("timeline_ms", {}),
        route=tuple(told.get("route", ())),
    )
