"""Cases in groups, and how a group is run: within a time budget, each failure a row of its own.

Knows order, budget and rows; what a case measures is its group's.
"""

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from typing import Any, NamedTuple

import torch

from cli.gpu.kit import Setup
from cli.gpu.rows import Found, Row, row_of
from cli.progress import Bar

Measure = Callable[[Any], Found]


class CannotFit(Exception):
    """A case needs more memory than the device has; the message says how much."""


class Case(NamedTuple):
    """One row."""

    name: str
    what: Any
    """For the group's ``Measure``."""
    cost_s: float
    """Expected, with compilation, at real sizes."""


class Group(NamedTuple):
    """Cases that share models or stores, which are given back behind the last."""

    name: str
    cases: Sequence[Case]
    room: Callable[[Setup], AbstractContextManager[Measure]]


class Budget:
    """Of time. A case that is expected to end behind it is not begun."""

    def __init__(self, minutes: float, *, is_toy: bool) -> None:
        self._began_s = time.monotonic()
        self._minutes = minutes
        self._is_toy = is_toy

    def reason(self, case: Case) -> str:
        """Why ``case`` is not run; empty if it is."""
        left_s = 60.0 * self._minutes - (time.monotonic() - self._began_s)
        needed_s = 0.0 if self._is_toy else case.cost_s
        return f"skipped: beyond {self._minutes:g} min" if left_s < needed_s or left_s <= 0 else ""


def run(groups: Sequence[Group], setup: Setup, budget: Budget) -> Iterator[Row]:
    """All rows, in order, each as soon as it is known."""
    bar, done_s = Bar(), 0.0
    total_s = sum(case.cost_s for group in groups for case in group.cases)
    for group in groups:
        with ExitStack() as stack:
            measure: Measure | None = None
            for case in group.cases:
                bar(f"{group.name}: {case.name}", done_s / total_s)
                done_s += case.cost_s
                if reason := budget.reason(case):
                    yield Row(group.name, case.name, note=reason)
                    continue
                row, measure = _row(group, case, measure, stack, setup)
                yield row
        del measure
        if setup.device.type == "cuda":
            gc.collect()
            # After some failures a device answers no more: what was measured still counts.
            with suppress(RuntimeError):
                torch.cuda.empty_cache()
    bar.done()


def _row(
    group: Group, case: Case, measure: Measure | None, stack: ExitStack, setup: Setup
) -> tuple[Row, Measure | None]:
    try:
        if measure is None:
            measure = stack.enter_context(group.room(setup))
        found = measure(case.what)
        return row_of(group.name, case.name, found, setup.rates), measure
    except CannotFit as error:
        return Row(group.name, case.name, note=f"skipped: {error}"), measure
    except torch.OutOfMemoryError:
        return Row(group.name, case.name, note="skipped: the device has no memory left"), measure
    except Exception as error:  # noqa: BLE001  one broken row must not cost the others
        text = f"failed: {type(error).__name__}: {error}".split("\n")[0][:160]
        return Row(group.name, case.name, note=text, is_broken=True), measure
