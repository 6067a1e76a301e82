"""What the driver asks of a transport, and what an answer tells beyond its tokens."""

from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from bench.live.turns import Ask, Turn, Wording, words_of

OnTokens = Callable[[int], None]
_FEW, _MANY = 20, 220
"""Words of the two texts that a tokenizer is judged by."""


class Answer(msgspec.Struct, frozen=True):
    """What is known behind the last token. Zeros and empty where the server does not say."""

    text: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    image_tokens: int = 0
    cached_tokens: int = 0
    attempts: int = 1
    route: tuple[str, ...] = ()
    phases: dict[str, float] = {}
    """Seconds, by the names of ``run.Row.phases``."""


class Sender(Protocol):
    """A way to one server. ``prepare`` does the work that needs no server, ahead of time."""

    async def start(self) -> None:
        """Learn what the server serves. Raises OSError or ValueError if it does not answer."""
        ...

    def prepare(self, ask: Ask) -> Any:
        """The request as it will be sent."""
        ...

    async def send(self, prepared: Any, on_tokens: OnTokens) -> Answer:
        """Send and read to the end; ``on_tokens`` is told how many output tokens came, the moment
        they come. Raises ``client.Refused`` (no room), another ValueError (what the server said
        instead), EOFError or OSError."""
        ...

    async def close(self) -> None:
        """Let go of every connection."""
        ...


async def calibrate(sender: Sender) -> Wording:
    """Tokens a word and around a prompt, from what the server counts of two texts. Exact lengths
    cannot be promised to an unknown tokenizer; this makes them right on average."""
    counts = []
    for number, count in enumerate((_FEW, _MANY)):
        ask = Ask((Turn("user", (words_of(-1 - number, count),)),), 1)
        answer = await sender.send(sender.prepare(ask), lambda _: None)
        counts.append(answer.prompt_tokens)
    few, many = counts
    if many <= few:
        return Wording()
    tokens_per_word = (many - few) / (_MANY - _FEW)
    return Wording(tokens_per_word, few - _FEW * tokens_per_word, is_measured=True)
