"""``triptych bench goodput``: bisection on the rate, every rate with every seed."""

import argparse
import asyncio

from bench.goodput import Bisection, Crossing
from bench.live.measure import Bench
from bench.run import Run
from cli.bench import words as shared
from cli.progress import Bar

LEAST_SEEDS = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    shared.add_server(parser)
    shared.add_load(parser, seeds="0,1,2")
    parser.add_argument("--start", type=float, default=1.0, help="first rate, requests per second")
    parser.add_argument("--level", type=float, default=0.9, help="attainment to keep")
    parser.add_argument("--tolerance", type=float, default=0.05, help="as a share of the rate")
    parser.add_argument("--greatest", type=float, default=10_000.0, help="rate that is tried")
    shared.add_results(parser)


def run(words: argparse.Namespace) -> int:
    """Search and show."""
    load = shared.load(words)
    if len(set(load.seeds)) < LEAST_SEEDS:
        raise ValueError(f"seed: a goodput needs at least {LEAST_SEEDS} different ones")
    found, runs = asyncio.run(_search(words))
    status = shared.finish(words, f"Goodput of {words.url} with {words.workload}", runs)
    print(f"goodput at {words.level:.0%}: {told(found)}")
    return status


async def _search(words: argparse.Namespace) -> tuple[Crossing, list[Run]]:
    bar, one = Bar(), shared.contender(words, words.url, words.name, words.gpus)
    search = Bisection(words.start, words.level, words.tolerance, (1e-3, words.greatest))
    try:
        return await Bench(shared.load(words), bar).goodput(one, search)
    finally:
        bar.done()
        await one.sender.close()


def told(found: Crossing) -> str:
    """The result in words."""
    if found.kind == "above":
        return f"at least {found.rate:.4g} requests/s, the greatest rate that was tried"
    if found.kind == "below":
        return f"below {found.bad:.4g} requests/s, the least rate that was tried"
    text = f"{found.rate:.4g} requests/s, between {found.good:.4g} and {found.bad:.4g}"
    return text if found.is_monotone else f"{text}; the last crossing is at {found.last:.4g}"
