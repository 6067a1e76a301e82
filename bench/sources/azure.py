"""``azure:PATH``: a trace of Azure's text services (Patel et al., *Splitwise*, ISCA 2024).

Reads a CSV of ``TIMESTAMP,ContextTokens,GeneratedTokens``. Knows lengths and times; no words, so
no two requests have anything in common.
"""

import csv
import random
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated

import msgspec

from bench.arrivals import replay
from bench.sources.pictures import content
from bench.workload import Arrival, Text
from triptych.core.errors import ConfigError

FILE = "AzureLLMInferenceTrace_code.csv"
COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options."""

    path: str
    """The CSV, or a folder with ``AzureLLMInferenceTrace_code.csv``."""
    start_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """After the first request of the trace."""


class Row(msgspec.Struct, frozen=True):
    """A line of the trace."""

    at_s: float
    """Since midnight of 1970 in the trace's own time zone."""
    num_text: int
    num_output: int


class Azure:
    """The trace."""

    def __init__(self, settings: Settings, name: str = "azure") -> None:
        """Reads the file. Raises ConfigError."""
        self.name = name
        self.settings = settings
        self.rows = read(Path(settings.path))
        self._times = [row.at_s for row in self.rows]

    def arrivals(self, rate: float | None, duration_s: float, seed: int) -> Iterator[Arrival]:
        """See ``Workload`` and ``arrivals.replay``; ``seed`` draws the texts alone."""
        source = random.Random(f"azure {seed}")
        for index, at_s in replay(self._times, rate, duration_s, self.settings.start_s):
            row = self.rows[index % len(self.rows)]
            text = Text(content(source), row.num_text)
            yield Arrival(at_s, (text,), row.num_output, answer=content(source))


def read(path: Path) -> tuple[Row, ...]:
    """The rows of a trace in order of time. Raises ConfigError that names the line."""
    file = path / FILE if path.is_dir() else path
    rows: list[Row] = []
    try:
        with file.open(newline="") as lines:
            table = csv.reader(lines)
            if (head := tuple(next(table, ()))) != COLUMNS:
                raise ConfigError(f"azure: columns {','.join(head)!r}, not {','.join(COLUMNS)}")
            rows.extend(_row(cells) for cells in table)
    except (OSError, ValueError, IndexError) as error:
        raise ConfigError(f"azure: line {len(rows) + 2}: {error}") from None
    if not rows:
        raise ConfigError("azure: the trace is empty")
    return tuple(sorted(rows, key=lambda row: row.at_s))


def _row(cells: list[str]) -> Row:
    at = datetime.fromisoformat(cells[0])
    at_s = (at.replace(tzinfo=None) - datetime(1970, 1, 1)).total_seconds()
    return Row(at_s, max(1, int(cells[1])), max(1, int(cells[2])))
