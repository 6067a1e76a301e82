"""Servers that differ in switches of overlap answer the same requests in turns.

One request at a time, so that only the order of things inside a request is measured. Sees what a
client sees: when each token came.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from itertools import pairwise
from statistics import median

import msgspec

from bench import record
from bench.chat import Ending, Message, ask
from bench.client import picture_part
from bench.systems import TriptychServer
from bench.workloads import picture

PUSH = "transfer.layerwise"
WHOLE, PARTS = 32_768, 1024
"""Chunk sizes: a prompt in one piece, and in several."""


def _chunk(tokens: int) -> tuple[str, ...]:
    return (f"engine.chunk_tokens={tokens}", f"engine.token_budget={tokens}")


PICTURE_CASES: dict[str, tuple[str, ...]] = {
    "both": (),
    "no E/P overlap": ("engine.overlap=false",),
    "no push by layer": (f"{PUSH}=false",),
    "neither": ("engine.overlap=false", f"{PUSH}=false"),
}
TOKEN_CASES: dict[str, tuple[str, ...]] = {
    "after prefill": (*_chunk(WHOLE), f"{PUSH}=false"),
    "by chunk": (*_chunk(PARTS), f"{PUSH}=false"),
    "by layer": (*_chunk(WHOLE), f"{PUSH}=true"),
    "by chunk and layer": (*_chunk(PARTS), f"{PUSH}=true"),
}
"""When KV leaves. The first is the transfer alone: nothing of it runs beside prefill."""
ALONE = "after prefill"

_WORDS = (
    *("red", "blue", "small", "large", "left", "right", "circle", "square"),
    *("count", "what", "where", "how", "many", "the", "is", "of"),
)
TOKENS_PER_WORD = 1.386
"""Of these words, evenly drawn, by the demo model's tokenizer."""


class Sample(msgspec.Struct, frozen=True):
    """One request, nothing else in the servers. Seconds since it was sent."""

    ttft_s: float
    second_s: float
    """The second token: decode has the KV and made its first step."""
    step_s: float
    """A decode step: the median gap between the tokens behind these."""
    prompt_tokens: int

    @property
    def exposed_s(self) -> float:
        """What decode waits for KV after prefill's last step, handing over included."""
        return self.second_s - self.ttft_s - self.step_s


class Row(msgspec.Struct, frozen=True):
    """One case at one size (pictures or tokens)."""

    case: str
    size: int
    samples: tuple[Sample, ...]

    def middle(self, figure: str) -> float:
        """Median of a figure."""
        return float(median(getattr(sample, figure) for sample in self.samples))


class Plan(msgspec.Struct, frozen=True):
    """How much is measured."""

    pictures: tuple[int, ...] = (1, 4, 8)
    tokens: tuple[int, ...] = (1024, 4096, 16384)
    side: int = 336
    repetitions: int = 5
    max_tokens: int = 10
    seed: int = 7


Make = Callable[[int, random.Random], list[Message]]
"""The messages of a request of some size."""


async def measure(
    servers: Mapping[str, TriptychServer], sizes: Sequence[int], make: Make, plan: Plan
) -> tuple[Row, ...]:
    """All servers up, every size and repetition asked of each in turns, the order turning too."""
    found: dict[tuple[str, int], list[Sample]] = {}
    async with AsyncExitStack() as stack:
        for name, server in servers.items():
            record.say(f"{name}: starting\n")
            stack.push_async_callback(server.stop)
            await server.start()
        for repetition in range(-1, plan.repetitions):
            for size in sizes if repetition >= 0 else sizes[:1]:  # the one before warms up
                record.say(f"\r\033[K{size}: repetition {repetition + 1} of {plan.repetitions}")
                messages = make(size, random.Random(f"{plan.seed} {repetition} {size}"))
                names = list(servers)
                turn = (repetition + 1) % len(names)
                for name in names[turn:] + names[:turn]:
                    sample = await _sample(servers[name], messages, plan.max_tokens)
                    if repetition >= 0:
                        found.setdefault((name, size), []).append(sample)
            record.say(f"\r\033[Krepetition {repetition + 1} of {plan.repetitions}: done\n")
    return tuple(Row(name, size, tuple(found[name, size])) for size in sizes for name in servers)


async def _sample(server: TriptychServer, messages: list[Message], max_tokens: int) -> Sample:
    reply = await ask(server.target, messages, Ending(max_tokens, is_fixed=True))
    times = reply.token_times_s
    gaps = [later - sooner for sooner, later in pairwise(times[1:])]
    return Sample(times[0], times[1], median(gaps), reply.prompt_tokens)


def with_pictures(side: int) -> Make:
    """A question about new pictures."""

    def make(size: int, source: random.Random) -> list[Message]:
        content = [picture_part(picture(source, side, side)) for _ in range(size)]
        content.append({"type": "text", "text": "How many shapes are there?"})
        return [{"role": "user", "content": content}]

    return make


def with_words(per_word: float) -> Make:
    """Words that make about so many tokens."""

    def make(size: int, source: random.Random) -> list[Message]:
        text = " ".join(source.choices(_WORDS, k=max(1, round(size / per_word))))
        return [{"role": "user", "content": text}]

    return make
