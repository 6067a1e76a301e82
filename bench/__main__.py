"""``make bench``: compare topologies and plain Transformers; a table, a JSON file and a plot.

``python -m bench prefix`` measures the prefix cache on a trace of prompts, ``python -m bench
links`` every way between two processes.
"""

import argparse
import asyncio
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

import msgspec

from bench import links, plots, prefix_trace, report
from bench.compare import Plan, compare
from bench.systems import PlainTransformers, System, SystemFailed, TriptychServer, has_cuda

COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "links": links.main,
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
    load = os.getloadavg()[0]
    if load > 0.3:
        print(f"note: the machine is busy already (load {load:.1f}); the figures will show it")
    try:
        rows = asyncio.run(compare(systems, plan, _say))
    except SystemFailed as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print("\n" + report.table(rows))
    print("Medians of the repetitions; in brackets the least and the greatest.")
    for path in write(words, plan, rows, load):
        print(f"written: {path}")
    return 0


def write(
    words: argparse.Namespace, plan: Plan, rows: tuple[report.Row, ...], load: float
) -> tuple[Path, Path]:
    """JSON with everything that is needed to read the figures, and the plot."""
    words.out.mkdir(parents=True, exist_ok=True)
    stem = time.strftime("%Y%m%d-%H%M%S")
    machine = f"{_processor()}, {len(os.sched_getaffinity(0))} cores, {words.device}"
    packages = ("torch", "transformers", "ray", "triptych")
    document = {
        "machine": machine,
        "load_before": load,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in packages},
        "settings": _settings(words),
        "plan": plan,
        "rows": rows,
    }
    data = words.out / f"{stem}.json"
    data.write_bytes(msgspec.json.format(msgspec.json.encode(document)))
    picture = words.out / f"{stem}.png"
    plots.draw(rows, picture, f"{Path(words.model).name}, {machine}")
    return data, picture


def _settings(words: argparse.Namespace) -> list[str]:
    return [f"model.device={words.device}", *words.set]


def _say(text: str) -> None:
    if sys.stdout.isatty():
        sys.stdout.write(text)
    elif text.endswith("\n"):
        sys.stdout.write(text.removeprefix("\r\033[K"))
    sys.stdout.flush()


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    sys.exit(main())
