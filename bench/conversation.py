"""``python -m bench conversation``: turns about the same pictures; what each costs, what is reused.

Two servers that differ in one setting answer the same conversation, turn by turn in turns: one
keeps KV of earlier turns, the other does not. A client's view, and the server's own counters.
"""

import argparse
import asyncio
import random
import re
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median

import msgspec

from bench import plots, record
from bench.chat import Ending, Message, ask
from bench.client import Target, get, picture_part
from bench.systems import SystemFailed, TriptychServer
from bench.workloads import picture

QUESTIONS = (
    "Describe the picture.",
    "What shape is in the first picture?",
    "What shape is in the second picture?",
    "Which picture has the red circle?",
    "How many shapes are there?",
    "What colour is the background?",
    "Do both pictures show the same shape?",
    "What is in the middle?",
    "Is there a blue square?",
    "Count the shapes.",
)
"""One a turn, again from the beginning where there are more turns."""

_ITEMS = re.compile(r'^triptych_encode_items_total\{source="(\w+)"\} (\S+)', re.MULTILINE)


class Turn(msgspec.Struct, frozen=True):
    """One turn of one conversation."""

    ttft_s: float
    prompt_tokens: int
    cached_tokens: int
    num_encode_jobs: int
    """Pictures that an encode instance was asked for."""
    num_encoded: int
    """Of these, the ones that it did not say to have had: where an answer overtakes the word of
    its pictures, they count as computed."""
    answer: str


class Row(msgspec.Struct, frozen=True):
    """One turn of one system over the repetitions."""

    system: str
    turn: int
    """Counted from 1."""
    runs: tuple[Turn, ...]

    def middle(self, figure: str) -> float:
        """Median of a field over the repetitions."""
        return float(median(getattr(run, figure) for run in self.runs))


class Plan(msgspec.Struct, frozen=True):
    """How much is measured."""

    num_turns: int = 10
    num_pictures: int = 3
    side: int = 336
    """Of a picture, in pixels; with patches of 28, 336 are 144 visual tokens."""
    max_tokens: int = 32
    repetitions: int = 3
    seed: int = 7

    def opening(self, repetition: int) -> list[Message]:
        """The pictures of a repetition, new in each, as the beginning of the first message."""
        source = random.Random(f"conversation {self.seed} {repetition}")
        pictures = [picture(source, self.side, self.side) for _ in range(self.num_pictures)]
        return [picture_part(png) for png in pictures]


class Speaker:
    """One system and what was said to it so far."""

    def __init__(self, name: str, server: TriptychServer, opening: list[Message]) -> None:
        self.name = name
        self._server = server
        self._opening = opening
        self._messages: list[Message] = []

    async def turn(self, question: str, max_tokens: int) -> Turn:
        """Ask one more question behind everything said before."""
        words = {"type": "text", "text": question}
        content = [words] if self._messages else [*self._opening, words]
        self._messages.append({"role": "user", "content": content})
        before = await _items(self._server.target)
        reply = await ask(self._server.target, self._messages, Ending(max_tokens))
        after = await _items(self._server.target)
        self._messages.append({"role": "assistant", "content": reply.text})
        asked = after - before
        return Turn(
            ttft_s=reply.ttft_s,
            prompt_tokens=reply.prompt_tokens,
            cached_tokens=reply.cached_tokens,
            num_encode_jobs=asked.total(),
            num_encoded=asked.total() - asked["cached"],
            answer=reply.text,
        )


async def measure(servers: dict[str, TriptychServer], plan: Plan) -> tuple[Row, ...]:
    """Start every server, hold every conversation with each, turn by turn in turns."""
    found: dict[tuple[str, int], list[Turn]] = {}
    async with AsyncExitStack() as stack:
        for name, server in servers.items():
            record.say(f"{name}: starting\n")
            stack.push_async_callback(server.stop)
            await server.start()
        for repetition in range(-1, plan.repetitions):
            opening = plan.opening(repetition)
            speakers = [Speaker(name, server, opening) for name, server in servers.items()]
            for number in range(plan.num_turns):
                _say(repetition, number, plan)
                for speaker in speakers if (repetition + number) % 2 else speakers[::-1]:
                    question = QUESTIONS[number % len(QUESTIONS)]
                    turn = await speaker.turn(question, plan.max_tokens)
                    if repetition >= 0:  # the one before warms up
                        found.setdefault((speaker.name, number + 1), []).append(turn)
    return tuple(Row(name, turn, tuple(runs)) for (name, turn), runs in found.items())


def table(rows: Sequence[Row]) -> str:
    """Markdown: medians over the repetitions, in brackets least and greatest TTFT."""
    lines = [
        "| turn | system | TTFT (ms) | prompt tokens | of these cached | encode jobs | encoded |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        times = [run.ttft_s * 1e3 for run in row.runs]
        spread = f"{median(times):.1f} ({min(times):.1f}-{max(times):.1f})"
        counts = ("prompt_tokens", "cached_tokens", "num_encode_jobs", "num_encoded")
        cells = [f"{row.middle(name):g}" for name in counts]
        lines.append(f"| {row.turn} | {row.system} | {spread} | {' | '.join(cells)} |")
    return "\n".join(lines)


def is_same(rows: Sequence[Row]) -> bool:
    """Whether all systems gave the same answers in every turn."""
    answers: dict[int, set[tuple[str, ...]]] = {}
    for row in rows:
        answers.setdefault(row.turn, set()).add(tuple(run.answer for run in row.runs))
    return all(len(each) == 1 for each in answers.values())


def panels(rows: Sequence[Row]) -> list[plots.Panel]:
    """TTFT by turn, and how many of the prompt's tokens were computed."""
    times: dict[str, list[tuple[float, float]]] = {}
    tokens: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        fresh = row.middle("prompt_tokens") - row.middle("cached_tokens")
        times.setdefault(row.system, []).append((row.turn, row.middle("ttft_s") * 1e3))
        tokens.setdefault(row.system, []).append((row.turn, fresh))
    return [
        plots.Panel("TTFT (ms)", "turn", times),
        plots.Panel("prompt tokens computed", "turn", tokens),
    ]


def parser() -> argparse.ArgumentParser:
    """Words of the command line."""
    top = argparse.ArgumentParser(prog="bench conversation", description=__doc__)
    plan = Plan()
    top.add_argument("--model", default="examples/demo_model")
    top.add_argument("--topology", default="E1,P1,D1")
    top.add_argument("--turns", type=int, default=plan.num_turns)
    top.add_argument("--pictures", type=int, default=plan.num_pictures)
    top.add_argument("--side", type=int, default=plan.side, help="of a picture, in pixels")
    top.add_argument("--repetitions", type=int, default=plan.repetitions)
    top.add_argument("--seed", type=int, default=plan.seed)
    top.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    top.add_argument("--out", type=Path, default=Path("runs/bench"))
    return top


def main(arguments: Sequence[str]) -> int:
    """Measure, print the table, write figures and plot."""
    words = parser().parse_args(arguments)
    plan = Plan(
        num_turns=words.turns,
        num_pictures=words.pictures,
        side=words.side,
        repetitions=words.repetitions,
        seed=words.seed,
    )
    servers = {
        name: TriptychServer(words.model, words.topology, [*words.set, setting], 120.0)
        for name, setting in (
            ("prefix cache", "cache.prefix=true"),
            ("no prefix cache", "cache.prefix=false"),
        )
    }
    load = record.load()
    try:
        rows = asyncio.run(measure(servers, plan))
    except (SystemFailed, ValueError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print("\n" + table(rows))
    print(f"The answers of both are {'the same' if is_same(rows) else 'DIFFERENT'}.")
    found = {"topology": words.topology, "settings": words.set, "plan": plan, "rows": rows}
    data, file = record.write(words.out, "conversation", load, found)
    title = f"{plan.num_pictures} pictures, {words.topology}, {Path(words.model).name}"
    plots.draw_lines(panels(rows), file, f"{title}, {record.machine()}")
    print(f"written: {data}\nwritten: {file}")
    return 0


async def _items(target: Target) -> Counter[str]:
    """How many pictures encode instances were asked for so far, by source."""
    _, body = await get(target, "/metrics")
    return Counter({source: int(float(value)) for source, value in _ITEMS.findall(body.decode())})


def _say(repetition: int, number: int, plan: Plan) -> None:
    title = f"repetition {repetition + 1} of {plan.repetitions}" if repetition >= 0 else "warm-up"
    record.say(f"\r\033[K{title}, turn {number + 1} of {plan.num_turns}")
    if number + 1 == plan.num_turns:
        record.say(f"\r\033[K{title}: done\n")
