"""Runs targets, several at a time, each in a process of its own.

Knows processes and their words; what a target measures is in ``measures``.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from scheduler.planner import PLANNERS
from simulator.reproduce.lab import Hear, Lab, NoTrace
from simulator.reproduce.measures import MEASURES, WITH_FIGURE
from simulator.reproduce.outcome import Outcome, Result
from simulator.reproduce.statistics import STATISTICS
from simulator.reproduce.target import Check, Target, read
from triptych.core.errors import ConfigError, TriptychError

Say = Callable[[int, str], None]
"""Hears the number of a target and what it does; an empty text: a check is done."""

LOOK_S = 0.2


def check_names(target: Target) -> None:
    """Raise ConfigError where a target names a measure or figure that there is not."""
    for check in target.checks:
        at = f"target {target.number}: {check.says}"
        if check.measure not in MEASURES:
            raise ConfigError(f"{at}: measure {check.measure!r} is none of {', '.join(MEASURES)}")
        figures: dict[str, Any] = STATISTICS if check.measure in WITH_FIGURE else {}
        figures = PLANNERS if check.measure == "planner_share" else figures
        if figures and check.figure not in figures:
            raise ConfigError(f"{at}: figure {check.figure!r} is none of {', '.join(figures)}")


def run(target: Target, traces: Path | None = None, hear: Hear = lambda _: None) -> Result:
    """Measure every check of one target. Raises ConfigError."""
    check_names(target)
    begin_s, lab = time.process_time(), Lab(target, traces, hear)
    outcomes = []
    for check in target.checks:
        outcomes.append(_outcome(lab, check))
        hear("")
    cpu_s = time.process_time() - begin_s
    return Result(target.number, tuple(outcomes), lab.num_requests, cpu_s)


def run_all(
    paths: Sequence[Path], traces: Path | None, num_processes: int, say: Say
) -> Iterator[Result]:
    """Results as they come. ``paths`` are target files; those that take longest should be first."""
    context = get_context("spawn")
    words: Queue[tuple[int, str]] = context.Queue()  # type: ignore[assignment]
    with ProcessPoolExecutor(num_processes, context, _enter, (words,)) as pool:
        running = {pool.submit(_run_file, path, traces) for path in paths}
        while running:
            done, running = wait(running, LOOK_S, FIRST_COMPLETED)
            _pass_on(words, say)
            for each in done:
                yield each.result()


def _outcome(lab: Lab, check: Check) -> Outcome:
    try:
        return Outcome(MEASURES[check.measure](lab, check))
    except NoTrace as error:
        return Outcome(None, f"{error}")
    except TriptychError as error:
        return Outcome(None, f"{error}", is_failed=True)


_words: "list[Queue[tuple[int, str]]]" = []
"""Of a process of the pool: where it tells what it does."""


def _enter(words: "Queue[tuple[int, str]]") -> None:
    _words.append(words)


def _run_file(path: Path, traces: Path | None) -> Result:
    target = read(path)
    return run(target, traces, lambda text: _words[0].put((target.number, text)))


def _pass_on(words: "Queue[tuple[int, str]]", say: Say) -> None:
    while True:
        try:
            say(*words.get_nowait())
        except Empty:
            return
