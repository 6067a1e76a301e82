"""``triptych bench run``: one workload, one rate, every seed given."""

import argparse
import asyncio

from bench.live.measure import Bench
from bench.run import Run
from cli.bench import words as shared
from cli.progress import Bar


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    shared.add_server(parser)
    shared.add_load(parser, seeds="0")
    parser.add_argument("--rate", type=float, help="requests/s; default: the workload's own")
    shared.add_results(parser)


def run(words: argparse.Namespace) -> int:
    """Measure and show."""
    return shared.finish(words, f"{words.workload} at {words.url}", asyncio.run(_measure(words)))


async def _measure(words: argparse.Namespace) -> list[Run]:
    load, bar = shared.load(words), Bar()
    one = shared.contender(words, words.url, words.name, words.gpus)
    bench = Bench(load, bar)
    total = len(load.seeds)
    try:
        return [
            await bench.run(one, words.rate, seed, (number / total, (number + 1) / total))
            for number, seed in enumerate(load.seeds)
        ]
    finally:
        bar.done()
        await one.sender.close()
