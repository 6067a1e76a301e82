"""``triptych reproduce``: published results as simulations; table, JSON, plot, page."""

import argparse
import datetime
import os
import platform
from pathlib import Path

import msgspec

from bench import plots
from cli.progress import Bar
from simulator.reproduce import document
from simulator.reproduce.kept import Kept
from simulator.reproduce.outcome import Result
from simulator.reproduce.runner import check_names, run_all
from simulator.reproduce.target import Target, read_all
from triptych import __version__
from triptych.core.errors import ConfigError

TARGETS = Path("examples/reproduce")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("numbers", nargs="*", type=int, help="targets; all if none is given")
    parser.add_argument("--targets", type=Path, default=TARGETS, metavar="DIR")
    traces = os.environ.get("TRIPTYCH_TRACES")
    parser.add_argument(
        "--traces", type=Path, default=Path(traces) if traces else None, metavar="DIR",
        help="copies of public traces (default: $TRIPTYCH_TRACES); without, targets are absent",
    )  # fmt: skip
    parser.add_argument("--processes", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument(
        "--results", type=Path, default=Path("runs/reproduction"), metavar="DIR",
        help="where every result is kept as soon as it is there",
    )  # fmt: skip
    parser.add_argument(
        "--resume", action="store_true", help="do not run again what was kept for the same file"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write docs/reproduction.md")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a PNG of all checks")


def run(words: argparse.Namespace) -> int:
    """Run the targets; 1 if one misses that should not."""
    targets = {target.number: target for target in read_all(words.targets)}
    if unknown := set(words.numbers) - set(targets):
        raise ConfigError(f"targets: there is no {', '.join(map(str, sorted(unknown)))}")
    chosen = [targets[number] for number in sorted(set(words.numbers) or targets)]
    for target in chosen:
        check_names(target)
    pairs = _measured(chosen, words)
    print(document.table(pairs))
    about = _about()
    if words.json is not None:
        _write(words.json, msgspec.json.format(msgspec.json.encode(document.as_json(pairs, about))))
    if words.page is not None and len(pairs) == len(targets):
        _write(words.page, document.text(pairs, about).encode())
    elif words.page is not None:
        print(f"not written, since not all targets were asked for: {words.page}")
    if words.plot is not None and len(pairs) == len(targets):
        plots.draw_bands(_bands(pairs), words.plot)
        print(f"written: {words.plot}")
    surprises = [says for target, result in pairs for says in result.surprises(target)]
    for says in surprises:
        print(f"missed: {says}")
    return 1 if surprises else 0


def _measured(chosen: list[Target], words: argparse.Namespace) -> list[tuple[Target, Result]]:
    files = {int(path.name[:2]): path for path in words.targets.glob("*.toml")}
    kept = Kept(words.results)
    found: dict[int, Result | None] = {
        each.number: kept.of(files[each.number]) if words.resume else None for each in chosen
    }
    missing = [target for target in chosen if found[target.number] is None]
    show = _Shown(missing)
    paths = [files[target.number] for target in sorted(missing, key=lambda each: -each.minutes)]
    for result in run_all(paths, words.traces, words.processes, show):
        found[result.number] = result
        kept.keep(files[result.number], result)
    show.bar.done()
    return [(target, each) for target in chosen if (each := found[target.number]) is not None]


class _Shown:
    """A bar over the checks of all targets."""

    def __init__(self, targets: list[Target]) -> None:
        self.bar = Bar()
        self._weight = {each.number: each.minutes / len(each.checks) for each in targets}
        self._total = sum(each.minutes for each in targets)
        self._done = 0.0
        self._text = ""

    def __call__(self, number: int, text: str) -> None:
        """See ``runner.Say``."""
        if text:
            self._text = f"{number}: {text}"
        else:
            self._done += self._weight[number]
        self.bar(self._text, self._done / self._total)


def _bands(pairs: document.Pairs) -> list[plots.Band]:
    return [
        plots.Band(f"{target.number}. {check.says}", check.low, check.high, one.value,
                   check.published)
        for target, result in pairs
        for one, check in result.checked(target)
    ]  # fmt: skip


def _about() -> dict[str, str]:
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "versions": f"Triptych {__version__}, Python {platform.python_version()}",
    }


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    print(f"written: {path}")
