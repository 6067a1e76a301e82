"""``make bench``: compare topologies and plain Transformers; a table, a JSON file and a plot.

A first word names another measurement, which has words of its own.
"""

import argparse
import asyncio
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from bench import conversation, links, plots, prefill, prefix_trace, record, summary
from bench.compare import Plan, compare
from bench.overlap import command as overlap
from bench.peers import command as peers
from bench.systems import PlainTransformers, System, SystemFailed, TriptychServer, has_cuda

COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "conversation": conversation.main,
    "overlap": overlap.main,
    "peers": peers.main,
    "links": links.main,
    "prefill": prefill.main,
    "prefix": prefix_trace.main,
}
"""What the first word may be; without one of these, the comparison runs."""


def parser() -> argparse.ArgumentParser:
    """Words of the command line."""
    top = argparse.ArgumentParser(prog="bench", description=__doc__)
    top.add_argument("--model", default="examples/demo_model")
    top.add_argument("--topologies", default="EPD1 E1,P1,D1", help="separated by blanks")
    top.add_argument("--rates", default="1,4,12", help="requests per second, separated by commas")
    top.add_argument("--seconds", type=float, default=10.0, help="of arrivals at each rate")
    top.add_argument("--repetitions", type=int, default=3)
    top.add_argument("--seed", type=int, default=7)
    top.add_argument("--timeout", type=float, default=60.0, help="of one request, in seconds")
    top.add_argument("--device", default="cpu", help="cpu or cuda")
    top.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    top.add_argument("--no-transformers", action="store_true", help="leave the baseline out")
    top.add_argument("--out", type=Path, default=Path("runs/bench"))
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run the comparison; 0 also when there is nothing to run it on."""
    given = sys.argv[1:] if arguments is None else arguments
    if given and given[0] in COMMANDS:
        return COMMANDS[given[0]](given[1:])
    words = parser().parse_args(given)
    if words.device.startswith("cuda") and not has_cuda():
        print("skipped: this machine has no CUDA device")
        return 0
    systems: list[System] = [
        TriptychServer(words.model, topology, _settings(words), words.timeout)
        for topology in words.topologies.split()
    ]
    if not words.no_transformers:
        systems.append(PlainTransformers(words.model, words.device))
    rates = tuple(float(rate) for rate in words.rates.split(","))
    plan = Plan(rates, words.seconds, words.repetitions, words.seed)
    load = record.load()
    try:
        rows = asyncio.run(compare(systems, plan, record.say))
    except SystemFailed as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print("\n" + summary.table(rows))
    print("Medians of the repetitions; in brackets the least and the greatest.")
    found = {"settings": _settings(words), "plan": plan, "rows": rows}
    data, picture = record.write(words.out, "", load, found)
    plots.draw(rows, picture, f"{Path(words.model).name}, {record.machine(words.device)}")
    print(f"written: {data}\nwritten: {picture}")
    return 0


def _settings(words: argparse.Namespace) -> list[str]:
    return [f"model.device={words.device}", *words.set]


if __name__ == "__main__":
    sys.exit(main())
