"""``triptych bench report``: files of runs in, a page, a trace and a table out."""

import argparse
from pathlib import Path

import msgspec

from bench import study
from bench.report import page, perfetto, terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("runs", nargs="+", type=Path, help="files of runs, put together")
    parser.add_argument("-o", "--out", type=Path, help="page (HTML)")
    parser.add_argument("--trace", type=Path, help="trace of the first run, for Perfetto")
    parser.add_argument("--title", help="instead of the first file's")
    parser.add_argument("--price", type=float, help="of a GPU hour, for the cost of a success")


def run(words: argparse.Namespace) -> int:
    """Read, print the table, write what is asked for."""
    first, *rest = [study.read(path) for path in words.runs]
    runs = tuple(run for each in (first, *rest) for run in each.runs)
    found = msgspec.structs.replace(
        first,
        runs=runs,
        title=words.title or first.title,
        price_per_gpu_hour=words.price or first.price_per_gpu_hour,
    )
    print(terminal.table(found))
    if words.out is not None:
        page.write(words.out, found)
        print(f"written: {words.out}")
    if words.trace is not None:
        perfetto.write(words.trace, runs[0])
        print(f"written: {words.trace}")
    return 0
