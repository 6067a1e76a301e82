"""``python -m bench prefill``: the first token of long visual prompts, dense and sparse, in turns.

Servers that differ in what computes attention answer the same prompts, each prompt new; nothing is
cached. What sparse attention loses is another question: ``docs/sparse.md``.
"""

import argparse
import asyncio
import random
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median

import msgspec

from bench import plots, record
from bench.chat import Ending, Message, ask
from bench.client import picture_part
from bench.systems import SystemFailed, TriptychServer
from bench.workloads import picture

SPARSE = ("sparse.min_tokens=1024", "sparse.local_tokens=512")
SYSTEMS: dict[str, tuple[str, ...]] = {
    "dense, PyTorch": ("model.kernels=plain",),
    "dense": (),
    "xattention, tau 0.9": ("sparse.selector=xattention", *SPARSE),
    "local and 1/4 of history": ("sparse.selector=local_and_history", *SPARSE),
    "local only": ("sparse.selector=local_and_history", "sparse.history=0", *SPARSE),
}
"""What is compared; all but the first with the kernels that ``auto`` takes."""
ROOM = ("cache.kv_blocks=4096", "cache.embedding_blocks=2048", "limits.max_pictures=256")
"""Places for 65,536 tokens."""


class Row(msgspec.Struct, frozen=True):
    """Prompts of one length at one system."""

    system: str
    num_pictures: int
    prompt_tokens: int
    prefill_s: tuple[float, ...]
    """The server's own account, by repetition."""
    ttft_s: tuple[float, ...]
    """The client's: the pictures' decoding and encoding are in it."""


class Plan(msgspec.Struct, frozen=True):
    """How much is measured."""

    pictures: tuple[int, ...] = (4, 16, 32)
    side: int = 448
    """Of a picture, in pixels; with patches of 28, 448 are 256 visual tokens."""
    repetitions: int = 3
    seed: int = 7

    def prompt(self, count: int, repetition: int) -> list[Message]:
        """One message of ``count`` pictures that nobody saw before, and a question."""
        source = random.Random(f"prefill {self.seed} {count} {repetition}")
        parts = [picture_part(picture(source, self.side, self.side)) for _ in range(count)]
        return [{"role": "user", "content": [*parts, {"type": "text", "text": "What is there?"}]}]


async def measure(servers: Mapping[str, TriptychServer], plan: Plan) -> tuple[Row, ...]:
    """Start every server, ask each prompt of all of them in turns."""
    rows = []
    async with AsyncExitStack() as stack:
        for name, server in servers.items():
            record.say(f"{name}: starting\n")
            stack.push_async_callback(server.stop)
            await server.start()
        for count in plan.pictures:
            seen: dict[str, list[tuple[float, float]]] = {name: [] for name in servers}
            tokens = 0
            for repetition in range(-1, plan.repetitions):  # the one before warms up
                prompt = plan.prompt(count, repetition)
                order = list(servers) if repetition % 2 else list(servers)[::-1]
                for name in order:
                    record.say(
                        f"\r\033[K{count} pictures, {repetition + 1} of {plan.repetitions}: {name}"
                    )
                    reply = await ask(servers[name].target, prompt, Ending(1))
                    tokens = reply.prompt_tokens
                    if repetition >= 0:
                        seen[name].append((reply.timeline_ms["prefill"] / 1e3, reply.ttft_s))
            rows += [
                Row(name, count, tokens, *(tuple(each) for each in zip(*times, strict=True)))
                for name, times in seen.items()
            ]
    record.say("\r\033[K")
    return tuple(rows)


def table(rows: Sequence[Row]) -> str:
    """Markdown: medians over the repetitions, in brackets least and greatest, and the ratio of
    prefill to that of ``dense``."""
    lines = [
        "| prompt tokens | attention | prefill (s) | of dense | first token (s) |",
        "|--:|---|---|--:|---|",
    ]
    dense = {row.num_pictures: median(row.prefill_s) for row in rows if row.system == "dense"}
    for row in rows:
        ratio = median(row.prefill_s) / dense[row.num_pictures]
        cells = (str(row.prompt_tokens), row.system, _spread(row.prefill_s), f"{ratio:.2f}")
        lines.append(f"| {' | '.join(cells)} | {_spread(row.ttft_s)} |")
    return "\n".join(lines)


def panels(rows: Sequence[Row]) -> list[plots.Panel]:
    """Prefill and first token by length of the prompt."""
    prefill: dict[str, list[tuple[float, float]]] = {}
    first: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        prefill.setdefault(row.system, []).append((row.prompt_tokens, median(row.prefill_s)))
        first.setdefault(row.system, []).append((row.prompt_tokens, median(row.ttft_s)))
    return [
        plots.Panel("prefill (s)", "tokens of the prompt", prefill),
        plots.Panel("first token (s)", "tokens of the prompt", first),
    ]


def parser() -> argparse.ArgumentParser:
    """Words of the command line."""
    top = argparse.ArgumentParser(prog="bench prefill", description=__doc__)
    plan = Plan()
    model = "runs/small-long"
    made = f"python -m examples.small_checkpoint {model} --positions 65536"
    top.add_argument("--model", default=model, help=f"checkpoint; this one is made by {made}")
    top.add_argument("--topology", default="EPD1")
    top.add_argument("--pictures", type=_counts, default=plan.pictures, metavar="N,N",
                     help="of a prompt, separated by commas")  # fmt: skip
    top.add_argument("--side", type=int, default=plan.side, help="of a picture, in pixels")
    top.add_argument("--repetitions", type=int, default=plan.repetitions)
    top.add_argument("--seed", type=int, default=plan.seed)
    top.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    top.add_argument("--out", type=Path, default=Path("runs/bench"))
    return top


def main(arguments: Sequence[str]) -> int:
    """Measure, print the table, write figures and plot."""
    words = parser().parse_args(arguments)
    plan = Plan(words.pictures, words.side, words.repetitions, words.seed)
    servers = {
        name: TriptychServer(words.model, words.topology, [*ROOM, *own, *words.set], 600.0)
        for name, own in SYSTEMS.items()
    }
    load = record.load()
    try:
        rows = asyncio.run(measure(servers, plan))
    except (SystemFailed, ValueError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print("\n" + table(rows))
    found = {"topology": words.topology, "settings": words.set, "plan": plan, "rows": rows}
    data, file = record.write(words.out, "prefill", load, found)
    title = f"{words.topology}, {Path(words.model).name}"
    plots.draw_lines(panels(rows), file, f"{title}, {record.machine()}")
    print(f"written: {data}\nwritten: {file}")
    return 0


def _counts(text: str) -> tuple[int, ...]:
    """Raises ArgumentTypeError."""
    try:
        counts = tuple(map(int, text.split(",")))
    except ValueError:
        counts = ()
    if not counts or min(counts) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not whole numbers of at least 1")
    return counts


def _spread(seconds: Sequence[float]) -> str:
    return f"{median(seconds):.2f} ({min(seconds):.2f}-{max(seconds):.2f})"
