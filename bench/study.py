"""Several runs that belong together, and the file they live in between a measurement and a report.

The file is one JSON document that is written as it is made, a request a line, so that a run of a
million requests needs no second copy in memory and ``grep`` finds a request. Knows no figure.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from bench.figures import Figures, Samples, figures, joined, samples
from bench.goodput import Crossing, Interval, Point, bootstrap, crossing, over_seeds
from bench.run import Run
from triptych.core.metrics import Pace

_ROWS = ("rows", "busy", "queues", "changes")


class Fit(msgspec.Struct, frozen=True):
    """How well a cost model meets what it was fitted to."""

    what: str
    """What it predicts, e.g. ``decode step``."""
    source: str
    """Where the measurements are from."""
    num_points: int
    mean_error: float
    """Mean absolute error as a share of the measured value."""
    worst: float = 0.0
    """The greatest such error."""


class Study(msgspec.Struct, frozen=True):
    """What one report is about."""

    title: str
    runs: tuple[Run, ...]
    scenario: str = ""
    """Text that makes it again: the scenario file, or the config and the command."""
    hardware: str = ""
    fits: tuple[Fit, ...] = ()
    price_per_gpu_hour: float | None = None
    currency: str = "USD"
    pace: Pace = "mean"
    notes: dict[str, str] = {}


class Setting(msgspec.Struct, frozen=True):
    """One system at one rate, over all seeds."""

    system: str
    rate: float
    runs: tuple[Run, ...]
    """One a seed."""
    pooled: Figures
    """Of the requests of all seeds together."""
    each: tuple[Figures, ...]
    """Of every run alone."""
    samples: Samples
    """What ``pooled`` is made of."""

    @property
    def attainment(self) -> Interval:
        """Over seeds."""
        return bootstrap([one.attainment for one in self.each])

    @property
    def num_gpus(self) -> float:
        """Of the system."""
        return self.runs[0].num_gpus


def settings(study: Study) -> list[Setting]:
    """Runs by system, in the order in which those appear, and by rate."""
    groups: dict[tuple[str, float], list[Run]] = {}
    for run in study.runs:
        groups.setdefault((run.system, run.rate), []).append(run)
    order = list(dict.fromkeys(run.system for run in study.runs))
    keys = sorted(groups, key=lambda key: (order.index(key[0]), key[1]))
    return [_setting(*key, groups[key], study.pace) for key in keys]


def _setting(system: str, rate: float, runs: Sequence[Run], pace: Pace) -> Setting:
    parts = [samples(run, pace) for run in runs]
    each = tuple(figures(run, pace, part) for run, part in zip(runs, parts, strict=True))
    whole = joined(parts)
    pooled = figures(runs, pace, whole) if len(runs) > 1 else each[0]
    return Setting(system, rate, tuple(runs), pooled, each, whole)


class Goodput(msgspec.Struct, frozen=True):
    """Of one system at one level."""

    system: str
    level: float
    crossing: Crossing
    """Of the pooled curve."""
    interval: Interval
    """Over the curves of the seeds."""
    num_gpus: float
    num_seeds: int = 0


def goodputs(found: Sequence[Setting], level: float) -> list[Goodput]:
    """Goodput of every system, from its sweep of rates."""
    answer = []
    for system in dict.fromkeys(each.system for each in found):
        mine = [each for each in found if each.system == system]
        curve = [Point(each.rate, each.pooled.attainment) for each in mine]
        curves: dict[int, list[Point]] = {}
        for each in mine:
            for run, alone in zip(each.runs, each.each, strict=True):
                curves.setdefault(run.seed, []).append(Point(each.rate, alone.attainment))
        spread, gpus = over_seeds(list(curves.values()), level), mine[0].num_gpus
        answer.append(Goodput(system, level, crossing(curve, level), spread, gpus, len(curves)))
    return answer


def write(path: Path, study: Study) -> None:
    """Write the document."""
    with path.open("wb") as file:
        for piece in pieces(study):
            file.write(piece)


def pieces(study: Study) -> Iterator[bytes]:
    """The document in pieces, none of them larger than a request."""
    head = {name: getattr(study, name) for name in study.__struct_fields__ if name != "runs"}
    yield msgspec.json.encode(head)[:-1] + b',"runs":['
    for number, run in enumerate(study.runs):
        about = {name: getattr(run, name) for name in run.__struct_fields__ if name not in _ROWS}
        yield (b",\n" if number else b"\n") + msgspec.json.encode(about)[:-1]
        for name in _ROWS:
            yield b',"' + name.encode() + b'":['
            for index, value in enumerate(getattr(run, name)):
                yield (b",\n" if index else b"\n") + msgspec.json.encode(_short(value))
            yield b"]"
        yield b"}"
    yield b"\n]}\n"


def _short(value: Any) -> Any:
    """Times to the microsecond: a client cannot tell more, and the file is half as large."""
    words = {}
    for name in value.__struct_fields__:
        field = getattr(value, name)
        if isinstance(field, float):
            field = round(field, 6)
        elif name == "token_times_s":
            field = [round(each, 6) for each in field]
        words[name] = field
    return words


def read(source: Path | BinaryIO) -> Study:
    """The study in a file. Raises ValueError with the path of what is wrong."""
    data = source.read_bytes() if isinstance(source, Path) else source.read()
    try:
        return msgspec.json.decode(data, type=Study)
    except msgspec.DecodeError as error:
        raise ValueError(f"not a file of runs: {error}") from error
