"""Results on disk and cells in processes: what was measured once is not measured again.

A line of JSON for each cell, appended when it ends, under a digest of everything that it depends
on; beside it one run a cell for a report. Knows no figure.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path

import msgspec

from bench import study
from bench.run import Run
from bench.study import Study
from simulator.contest import match
from simulator.contest.contest import Cell
from simulator.contest.match import Result

Hear = Callable[[Cell, Result], None]


def key_of(cell: Cell) -> str:
    """Of everything that a result depends on, the code apart."""
    contest = cell.contest
    settled = {
        name: getattr(contest, name)
        for name in contest.__struct_fields__
        if name not in ("name", "systems", "loads", "num_gpus")
    }
    entry = msgspec.structs.replace(cell.entry, does="", lacks="")
    load = msgspec.to_builtins(cell.load)
    del load["short_s"]  # settled by now
    parts = [settled, entry, msgspec.Raw(msgspec.json.encode(load)), cell.num_gpus]
    text = msgspec.json.encode(parts, order="deterministic")
    return hashlib.sha256(text).hexdigest()[:16]


class Ledger:
    """A file of results, and a folder of runs beside it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._runs = path.with_suffix(".runs")

    def results(self) -> dict[str, Result]:
        """By key; the last of each. A line that a killed process left half is passed over."""
        if not self._path.exists():
            return {}
        found = {}
        for line in self._path.read_bytes().splitlines():
            try:
                result = msgspec.json.decode(line, type=Result)
            except msgspec.DecodeError:
                continue
            found[result.key] = result
        return found

    def append(self, result: Result) -> None:
        """Write it down."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        is_cut = self._path.exists() and not self._path.read_bytes().endswith(b"\n")
        with self._path.open("ab") as file:
            file.write((b"\n" if is_cut else b"") + msgspec.json.encode(result) + b"\n")

    def runs(self, keys: Sequence[str]) -> tuple[Run, ...]:
        """The runs of some cells, as far as they are there."""
        paths = [self._run(key) for key in keys]
        return tuple(run for path in paths if path.exists() for run in study.read(path).runs)

    def measure(self, cell: Cell) -> Result:
        """Measure a cell, in whatever process this is, and keep its run. Raises ConfigError."""
        result, run = match.run(cell, key_of(cell))
        self._runs.mkdir(parents=True, exist_ok=True)
        study.write(self._run(result.key), Study(cell.title, (run,)))
        return result

    def _run(self, key: str) -> Path:
        return self._runs / f"{key}.json"


def measure(
    ledger: Ledger,
    cells: Sequence[Cell],
    jobs: int,
    on_wait: Callable[[int, int], None] = lambda *_: None,
) -> dict[str, Result]:
    """Results of all cells by key; those that are missing are measured, ``jobs`` at a time.
    ``on_wait`` hears now and then how many are there. Raises what a cell raised; what ended before
    is on disk."""
    found = ledger.results()
    missing = [cell for cell in cells if key_of(cell) not in found]
    total = len(cells)
    if jobs == 1:
        for cell in missing:
            on_wait(total - len(missing) + missing.index(cell), total)
            _keep(ledger, found, ledger.measure(cell))
        return found
    with ProcessPoolExecutor(jobs) as pool:
        left = {pool.submit(ledger.measure, cell) for cell in missing}
        try:
            for ended in _ended(left, lambda: on_wait(total - len(left), total)):
                _keep(ledger, found, ended.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return found


def _ended(
    left: set[Future[Result]], on_wait: Callable[[], None], every_s: float = 0.5
) -> Iterator[Future[Result]]:
    while left:
        on_wait()
        done, _ = wait(left, every_s, FIRST_COMPLETED)
        for each in done:
            left.discard(each)
            yield each


def _keep(ledger: Ledger, found: dict[str, Result], result: Result) -> None:
    ledger.append(result)
    found[result.key] = result
