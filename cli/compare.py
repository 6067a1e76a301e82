"""``python -m cli.compare``: systems against each other at equal GPUs; continues where it stopped.

Tables in the terminal; a plot, reports and a page of the documentation if asked for.
"""

import argparse
import datetime
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from bench.report import page
from bench.study import Study
from cli.progress import Bar
from simulator.contest import table
from simulator.contest.contest import (
    Cell,
    Contest,
    cells,
    check,
    lasting,
    quick,
    read,
    short,
    with_traces,
)
from simulator.contest.ledger import Ledger, key_of, measure
from simulator.contest.match import Result
from triptych.core.errors import ConfigError

BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->\n"


def parser() -> argparse.ArgumentParser:
    """Words of the command line."""
    top = argparse.ArgumentParser(prog="compare", description=__doc__)
    top.add_argument("contest", type=Path, nargs="?", default=Path("examples/compare/h200.toml"))
    top.add_argument("--gpus", help="instead of the contest's: 8,64")
    top.add_argument("--only", default="", help="names of systems or loads, separated by commas")
    top.add_argument("--traces", type=Path, default=os.environ.get("TRIPTYCH_TRACES"),
                     help="folder of published traces")  # fmt: skip
    top.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="cells at a time")
    top.add_argument("--short", action="store_true", help="two seeds and shorter runs")
    top.add_argument("--seconds", type=float, help="of arrivals: fewer for large fleets")
    top.add_argument("--quick", action="store_true", help="a few seconds of each: no result")
    top.add_argument("--out", type=Path, default=Path("runs/compare.jsonl"), help="results so far")
    top.add_argument("--scaling", action="store_true", help="show efficiency over the fewest GPUs")
    top.add_argument("--plot", type=Path, metavar="PNG")
    top.add_argument("--report", type=Path, metavar="DIR", help="an HTML report of each row")
    top.add_argument("--write", type=Path, metavar="PAGE", help="put the tables into a page")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is missing and show everything."""
    words = parser().parse_args(arguments)
    try:
        contest = _contest(words)
        wanted = list(cells(contest))
        ledger, bar = Ledger(words.out), Bar()
        found = measure(
            ledger,
            wanted,
            words.jobs,
            lambda done, total: bar(f"{done} of {total} cells", done / total),
        )
    except ConfigError as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("compare: stopped; the same command continues", file=sys.stderr)
        return 130
    bar.done()
    results = [found[key_of(cell)] for cell in wanted]
    text = _text(words, contest, results)
    print(text)
    if words.plot is not None:
        _plot(words, contest, results)
    if words.report is not None:
        _report(words, contest, wanted, ledger)
    if words.write is not None:
        write_into(words.write, text)
        print(f"written: {words.write}")
    return 0


def _contest(words: argparse.Namespace) -> Contest:
    contest = read(words.contest)
    if words.gpus:
        numbers = tuple(int(each) for each in words.gpus.split(","))
        contest = msgspec.structs.replace(contest, num_gpus=numbers)
    if words.only:
        names = {each.strip() for each in words.only.split(",")}
        known = {one.name for one in contest.systems} | {one.name for one in contest.loads}
        if unknown := names - known:
            raise ConfigError(f"only: {', '.join(sorted(unknown))}: none of {sorted(known)}")
        contest = msgspec.structs.replace(
            contest,
            systems=tuple(one for one in contest.systems if one.name in names) or contest.systems,
            loads=tuple(one for one in contest.loads if one.name in names) or contest.loads,
        )
    if words.short:
        contest = short(contest)
    if words.quick:
        contest = quick(contest)
    if words.seconds is not None:
        if not 0 < words.seconds < math.inf:
            raise ConfigError(f"seconds: {words.seconds:g} is not above 0 and finite")
        contest = lasting(contest, words.seconds)
    contest = with_traces(contest, words.traces)
    check(contest)
    return contest


def _text(words: argparse.Namespace, contest: Contest, results: list[Result]) -> str:
    """All tables."""
    seconds = sum(one.cpu_s for one in results)
    requests = sum(one.num_requests for one in results)
    seeds = ", ".join(map(str, contest.seeds))
    command = " ".join(["python -m cli.compare", str(words.contest), *_options(words)])
    parts = [
        f"{contest.name}, {datetime.date.today().isoformat()}: `{command}`."
        f" {contest.duration_s:g} s of arrivals unless a load says otherwise, seeds {seeds},"
        f" bisection to {contest.tolerance:.0%}; {requests:,} simulated requests,"
        f" {seconds / 60:.0f} CPU minutes.",
        *(["**Quick settings: no result.**"] if words.quick else []),
    ]
    if words.scaling:
        return "\n\n".join([*parts, table.efficiencies(contest, results)])
    return "\n\n".join(
        [
            *parts,
            "Goodput, requests per second and GPU at "
            f"{contest.attainment:.0%} attainment (95 % interval over seeds):",
            table.goodputs(contest, results),
            "Layouts, and the shares of requests that missed a bound just beyond the goodput:",
            table.layouts(contest, results),
            table.fairness(contest),
        ]
    )


def _options(words: argparse.Namespace) -> list[str]:
    named = [f"--gpus {words.gpus}"] if words.gpus else []
    named += [f'--only "{words.only}"'] if words.only else []
    named += ["--traces TRACES"] if words.traces else []
    return [
        *named,
        *(["--short"] if words.short else []),
        *([f"--seconds {words.seconds:g}"] if words.seconds is not None else []),
        *(["--quick"] if words.quick else []),
        *(["--scaling"] if words.scaling else []),
    ]


def _plot(words: argparse.Namespace, contest: Contest, results: list[Result]) -> None:
    from bench.plots import Panel, draw_bars, draw_lines  # matplotlib is an extra

    if words.scaling:
        least = min(contest.num_gpus)
        lines: dict[str, list[tuple[float, float]]] = {}
        for one in sorted(results, key=lambda one: one.num_gpus):
            share = table.efficiency(results, one, least)
            if share is not None:
                lines.setdefault(f"{one.system}, {one.load}", []).append((one.num_gpus, share))
        panel = Panel("goodput(kN) / (k goodput(N))", "GPUs", lines, is_log=True)
        draw_lines([panel], words.plot, contest.name)
    else:
        bars = {
            f"{load}, {number} GPUs": {
                result.system: (
                    result.per_gpu,
                    result.goodput.interval.low / number,
                    result.goodput.interval.high / number,
                )
                for result in table.of_row(results, (load, number)).values()
            }
            for load, number in table.rows_of(contest)
        }
        draw_bars(bars, words.plot, f"{contest.name}: goodput per GPU (requests/s)")
    print(f"written: {words.plot}")


def _report(
    words: argparse.Namespace, contest: Contest, wanted: list[Cell], ledger: Ledger
) -> None:
    """A report of each row: every system at the greatest of its rates that was good."""
    words.report.mkdir(parents=True, exist_ok=True)
    for load, number in table.rows_of(contest):
        own = [cell for cell in wanted if (cell.load.name, cell.num_gpus) == (load, number)]
        runs = ledger.runs([key_of(cell) for cell in own])
        if runs:
            path = words.report / f"{load}-{number}.html"
            title = f"{contest.name}: {load}, {number} GPUs, each at its own goodput"
            page.write(path, Study(title, runs, scenario=words.contest.read_text()))
            print(f"written: {path}")


def write_into(path: Path, text: str) -> None:
    """Put ``text`` between the marks of a page. Raises ValueError without them."""
    whole = path.read_text()
    before, begin, rest = whole.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path}: needs the lines {BEGIN.strip()} and {END.strip()}")
    path.write_text(f"{before}{begin}{text}\n{end}{after}")


if __name__ == "__main__":
    sys.exit(main())
