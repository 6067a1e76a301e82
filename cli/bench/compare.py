"""``triptych bench compare``: several servers, the same requests, in turns.

Servers that run already are named by address; topologies are started here, all of them at once and
each left alone while another is measured.
"""

import argparse
import asyncio
from contextlib import AsyncExitStack

from bench.live.measure import Bench, Contender
from bench.run import Run
from bench.systems import SystemFailed, TriptychServer
from cli.bench import words as shared
from cli.progress import Bar
from triptych.core.errors import Unavailable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--server", action="append", default=[], metavar="NAME=URL[@GPUS]",
                        help="that runs already; may be given again")  # fmt: skip
    parser.add_argument("--topologies", default="", help="to start here, separated by blanks")
    parser.add_argument("--serve-model", default="examples/demo_model", help="of those")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of those")
    shared.add_dialect(parser)
    shared.add_load(parser, seeds="0,1,2")
    parser.add_argument("--rates", default="1,2,4", help="separated by commas")
    shared.add_results(parser)


def run(words: argparse.Namespace) -> int:
    """Measure all and show."""
    if not words.server and not words.topologies:
        raise ValueError("server: nothing to compare; give --server or --topologies")
    try:
        runs = asyncio.run(_measure(words))
    except SystemFailed as error:
        raise Unavailable(str(error), public=str(error)) from error
    return shared.finish(words, f"{words.workload}: {len({r.system for r in runs})} systems", runs)


async def _measure(words: argparse.Namespace) -> list[Run]:
    bar = Bar()
    async with AsyncExitStack() as stack:
        stack.callback(bar.done)
        contenders = [_named(words, text) for text in words.server]
        for topology in words.topologies.split():
            server = TriptychServer(words.serve_model, topology, words.set, words.timeout)
            bar(f"{topology}: starting\n", 0.0)
            stack.push_async_callback(server.stop)
            await server.start()
            gpus = sum(int(part.lstrip("EPD") or 1) for part in topology.split(","))
            contenders.append(shared.contender(words, server.target.url, topology, gpus))
        for one in contenders:
            stack.push_async_callback(one.sender.close)
        return await Bench(shared.load(words), bar).sweep(contenders, shared.rates(words))


def _named(words: argparse.Namespace, text: str) -> Contender:
    name, equals, address = text.partition("=")
    if not equals:
        raise ValueError(f"server: {text!r} is not NAME=URL")
    url, at, gpus = address.rpartition("@")
    return shared.contender(words, url if at else address, name, float(gpus) if at else 1.0)
