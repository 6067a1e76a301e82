"""Options that the measuring commands share, and what they mean: server, load, results."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from bench import study
from bench.client import Target
from bench.live.http import HttpSender
from bench.live.measure import Contender, Load
from bench.live.sender import Sender
from bench.record import machine
from bench.report import page, perfetto, terminal
from bench.run import Run
from bench.sources.registry import workload
from bench.study import Study
from cli.bench.grpc_sender import GrpcSender

WORKLOAD = "synthetic:fixed"
"""One picture, as many words and tokens each time: see ``bench.sources.registry``."""


def add_server(parser: argparse.ArgumentParser) -> None:
    """Where the server is and how it is spoken to."""
    parser.add_argument("--url", default="http://127.0.0.1:8000",
                        help="http://, https:// or, of a Triptych server, grpc://")  # fmt: skip
    parser.add_argument("--name", default="", help="in tables and legends; default: the address")
    parser.add_argument("--gpus", type=float, default=1.0, help="that the server has")
    add_dialect(parser)


def add_dialect(parser: argparse.ArgumentParser) -> None:
    """What is said to it."""
    parser.add_argument("--model", default="", help="default: the first that it names")
    parser.add_argument("--key", default="", help="API key")
    parser.add_argument("--plain", action="store_true", help="say nothing that only Triptych knows")
    parser.add_argument("--strict", action="store_true",
                        help="say nothing that OpenAI does not know")  # fmt: skip


def add_load(parser: argparse.ArgumentParser, *, seeds: str) -> None:
    """What is offered."""
    parser.add_argument("--workload", default=WORKLOAD, metavar="W",
                        help="SOURCE:KIND or SOURCE:PATH,option=value")  # fmt: skip
    parser.add_argument("--duration", type=float, default=30.0, help="seconds behind the warm-up")
    parser.add_argument("--warmup", type=float, default=5.0, help="seconds that count nowhere")
    parser.add_argument("--seed", default=seeds, help="one, or several separated by commas")
    parser.add_argument("--timeout", type=float, default=120.0, help="of a request, in seconds")
    parser.add_argument("--max-late-ms", type=float, default=10.0,
                        help="a run whose client was later at p99 is marked invalid")  # fmt: skip


def add_results(parser: argparse.ArgumentParser) -> None:
    """Where they go."""
    parser.add_argument("--out", type=Path, help="file of runs (JSON), for `bench report`")
    parser.add_argument("--report", type=Path, help="page (HTML)")
    parser.add_argument("--trace", type=Path, help="trace of the first run, for Perfetto")


def load(words: argparse.Namespace) -> Load:
    """The load that the words mean."""
    return Load(
        workload=workload(words.workload),
        duration_s=words.duration,
        warmup_s=words.warmup,
        seeds=tuple(int(word) for word in words.seed.split(",")),
        timeout_s=words.timeout,
        max_late_s=words.max_late_ms / 1000,
    )


def rates(words: argparse.Namespace) -> list[float]:
    """Rates separated by commas."""
    return [float(word) for word in words.rates.split(",")]


def contender(words: argparse.Namespace, url: str, name: str = "", gpus: float = 1.0) -> Contender:
    """The server at ``url``, spoken to as the words say."""
    parts = urlsplit(url if "//" in url else f"http://{url}")
    sender: Sender
    if parts.scheme == "grpc":
        sender = GrpcSender(parts.netloc, words.key)
    else:
        target = Target.of(url, words.model, words.key, words.timeout)
        sender = HttpSender(target, is_plain=words.plain, is_strict=words.strict)
    return Contender(name or parts.netloc, sender, gpus)


def finish(words: argparse.Namespace, title: str, runs: Sequence[Run]) -> int:
    """Print the table and write what is asked for; 3 if a run must not be used."""
    found = Study(
        title=title,
        runs=tuple(runs),
        scenario="triptych " + " ".join(sys.argv[1:]),
        hardware=f"client on {machine()}",
        notes={"measured": time.strftime("%Y-%m-%d %H:%M")},
    )
    print(terminal.table(found))
    if words.out is not None:
        study.write(words.out, found)
    if words.report is not None:
        page.write(words.report, found)
    if words.trace is not None:
        perfetto.write(words.trace, runs[0])
    for path in (words.out, words.report, words.trace):
        if path is not None:
            print(f"written: {path}")
    return 3 if any(run.invalid for run in runs) else 0
