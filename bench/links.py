"""``python -m bench links``: bandwidth and latency of every way, as a Markdown table.

Asks ``triptych doctor --links`` again and again, in turns with digests and without, so that each
run has its own plain copy and bare socket beside it. Shares are of those of the same turn: what
else the machine does meets both. Without NCCL, gloo stands in for it and is named.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import msgspec

SIZES = "65536,262144,1048576,4194304,16777216,67108864"
BESIDE = {"tcp": "socket"}
"""What a way is compared with; others with a plain copy."""
COPY = "memcpy"


class Link(msgspec.Struct, frozen=True):
    """One way in one run, as the doctor tells it."""

    way: str
    latency_s: tuple[float, ...]
    bytes_per_s: dict[int, tuple[float, ...]]
    problem: str


class Run(msgspec.Struct, frozen=True):
    """One run of the doctor."""

    links: tuple[Link, ...]


def main(arguments: Sequence[str]) -> int:
    """Measure, and write the table and a JSON file of all that was measured."""
    words = _parser().parse_args(arguments)
    load = os.getloadavg()[0]
    runs: dict[str, list[Run]] = {"off": [], "on": []}
    for number in range(words.repetitions):
        for digest in runs:
            sys.stderr.write(f"repetition {number + 1} of {words.repetitions}, digest {digest}\n")
            runs[digest].append(_doctor(words, digest))
    note = (
        f"{words.repetitions} runs of {words.turns} turns each, {named(words.bytes)} a transfer; "
        f"medians, in brackets the least and the greatest. Load of the machine at the start "
        f"{load:.1f} on {os.cpu_count()} cores. "
        f"nccl by {words.nccl_backend}. Stores in {'huge pages' if words.huge else 'memfds'}."
    )
    text = "\n\n".join([*(table(found, digest) for digest, found in runs.items()), note])
    print(text)
    words.out.mkdir(parents=True, exist_ok=True)
    stem = words.out / time.strftime("%Y%m%d-%H%M%S")
    stem.with_suffix(".md").write_text(text + "\n")
    told = msgspec.to_builtins({"load": load, "runs": runs}, str_keys=True)
    stem.with_suffix(".json").write_text(json.dumps(told))
    print(f"\nwritten: {stem}.md, {stem}.json")
    return 0


def table(runs: Sequence[Run], digest: str) -> str:
    """A line per way and what it is of its neighbour's bandwidth in the same turn."""
    sizes = sorted({size for link in runs[0].links for size in link.bytes_per_s})
    head = ["way", "4 KiB, us", *(f"{named(size)}, GB/s" for size in sizes)]
    lines = [f"Digest {digest}:\n", _line(head), _line(["---"] * len(head))]
    for way in [link.way for link in runs[0].links]:
        mine = [_of(run, way) for run in runs]
        problem = next((link.problem for link in mine if link.problem), "")
        if problem:
            lines.append(_line([way, problem, *("" for _ in sizes)]))
            continue
        latency = spread([one * 1e6 for link in mine for one in link.latency_s], "{:.0f}")
        lines.append(_line([way, latency, *(_rate(runs, way, size) for size in sizes)]))
    return "\n".join(lines)


def share(runs: Sequence[Run], way: str, size: int) -> float:
    """Median share of a way's bandwidth in that of what it is compared with, turn by turn."""
    beside = BESIDE.get(way, COPY)
    pairs = [
        (mine, its)
        for run in runs
        for mine, its in zip(
            _of(run, way).bytes_per_s[size], _of(run, beside).bytes_per_s[size], strict=True
        )
    ]
    return median(mine / its for mine, its in pairs)


def spread(values: Sequence[float], form: str = "{:.2f}") -> str:
    """``median (least-greatest)``."""
    say: Callable[[float], str] = form.format
    return f"{say(median(values))} ({say(min(values))}-{say(max(values))})"


def named(num_bytes: int) -> str:
    """``64 KiB``."""
    is_large = num_bytes >= 1 << 20
    return f"{num_bytes >> (20 if is_large else 10)} {'MiB' if is_large else 'KiB'}"


def _rate(runs: Sequence[Run], way: str, size: int) -> str:
    rates = [rate / 1e9 for run in runs for rate in _of(run, way).bytes_per_s[size]]
    if way in (COPY, *BESIDE.values()):
        return spread(rates)
    return f"{spread(rates)} {share(runs, way, size):.0%}"


def _of(run: Run, way: str) -> Link:
    return next(link for link in run.links if link.way == way)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _doctor(words: argparse.Namespace, digest: str) -> Run:
    settings = [
        f"transfer.digest={'true' if digest == 'on' else 'false'}",
        f"transfer.nccl_backend={words.nccl_backend}",
        *words.set,
    ]
    command = [sys.executable, "-m", "cli", "doctor", "--links", "--json"]
    command += ["--link-sizes", words.sizes, "--link-turns", str(words.turns)]
    command += ["--link-bytes", str(words.bytes)]
    if words.huge:
        command.append("--link-huge")
    for setting in settings:
        command += ["--set", setting]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    return msgspec.convert(json.loads(done.stdout), Run, strict=False)


def _parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="bench links", description=__doc__)
    top.add_argument("--sizes", default=SIZES, help="bytes of a block, separated by commas")
    top.add_argument("--bytes", type=int, default=256 << 20, help="of a transfer")
    top.add_argument("--repetitions", type=int, default=3)
    top.add_argument("--turns", type=int, default=5, help="of each way in a repetition")
    top.add_argument("--nccl-backend", default="gloo")
    top.add_argument("--huge", action="store_true", help="out of huge pages that nobody shares")
    top.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    top.add_argument("--out", type=Path, default=Path("runs/links"))
    return top
