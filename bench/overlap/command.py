"""``python -m bench overlap``: what is gained when encode, prefill and transfers overlap.

Measured on the demo model on this machine, and computed for a large one. Knows words and order.
"""

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench import plots, record
from bench.overlap import analytic, wide
from bench.overlap.measure import (
    PICTURE_CASES,
    TOKEN_CASES,
    TOKENS_PER_WORD,
    Plan,
    Row,
    measure,
    with_pictures,
    with_words,
)
from bench.overlap.tables import panels, picture_table, token_table
from bench.systems import SystemFailed, TriptychServer


def parser() -> argparse.ArgumentParser:
    """Words of the command line."""
    top = argparse.ArgumentParser(prog="bench overlap", description=__doc__)
    plan = Plan()
    top.add_argument("--model", type=Path, default=Path("examples/demo_model"))
    top.add_argument("--topology", default="E1,P1,D1")
    top.add_argument("--pictures", default=",".join(map(str, plan.pictures)))
    top.add_argument("--tokens", default=",".join(map(str, plan.tokens)))
    top.add_argument("--repetitions", type=int, default=plan.repetitions)
    top.add_argument("--seed", type=int, default=plan.seed)
    top.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    top.add_argument("--computed", action="store_true", help="nothing is started")
    top.add_argument("--out", type=Path, default=Path("runs/bench"))
    return top


def main(arguments: Sequence[str]) -> int:
    """Measure, print tables, write figures and plot."""
    words = parser().parse_args(arguments)
    plan = Plan(
        pictures=() if words.computed else _numbers(words.pictures),
        tokens=() if words.computed else _numbers(words.tokens),
        repetitions=words.repetitions,
        seed=words.seed,
    )
    load = record.load()
    try:
        with tempfile.TemporaryDirectory() as folder:
            token_bytes = wide.write(words.model, Path(folder))
            pictures, tokens = asyncio.run(_both(words, plan, folder))
    except (SystemFailed, ValueError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    if pictures:
        print("\n" + picture_table(pictures))
    if tokens:
        print("\n" + token_table(tokens, token_bytes))
    print("\nQwen2.5-VL-7B on H200s, computed:\n" + analytic.hidden_table())
    print("\n" + analytic.ttft_table())
    found = {"settings": words.set, "plan": plan, "pictures": pictures, "tokens": tokens}
    data, file = record.write(words.out, "overlap", load, found)
    title = "Computed: Qwen2.5-VL-7B on H200s, from bytes and published rates"
    if pictures or tokens:
        title = f"Measured: {words.topology}, {words.model.name}, {record.machine()}. {title}"
    plots.draw_lines(panels(pictures, tokens), file, title)
    print(f"written: {data}\nwritten: {file}")
    return 0


async def _both(
    words: argparse.Namespace, plan: Plan, folder: str
) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """Both measurements, one after the other."""

    def servers(model: str, cases: Mapping[str, Sequence[str]]) -> dict[str, TriptychServer]:
        common = ("cluster.backend=process", *words.set)
        return {
            name: TriptychServer(model, words.topology, [*common, *settings], 600.0)
            for name, settings in cases.items()
        }

    pictures: tuple[Row, ...] = ()
    tokens: tuple[Row, ...] = ()
    if plan.pictures:
        make = with_pictures(plan.side)
        found = servers(str(words.model), PICTURE_CASES)
        pictures = await measure(found, plan.pictures, make, plan)
    if plan.tokens:
        room = ("cache.prefix=false", "cache.kv_blocks=2048", "limits.max_text_bytes=1000000",
                "limits.default_deadline_s=600")  # fmt: skip
        cases = {name: (*room, *settings) for name, settings in TOKEN_CASES.items()}
        tokens = await measure(
            servers(folder, cases), plan.tokens, with_words(TOKENS_PER_WORD), plan
        )
    return pictures, tokens


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(",") if word)
