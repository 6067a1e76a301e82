"""``mooncake:PATH``: conversations of Kimi (Qin et al., *Mooncake*, FAST 2025), text alone.

Knows lengths, times and which blocks of 512 tokens are the same; no words, and not which request
goes on with which conversation, so that arrivals are open loop as in the trace.
"""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec

from bench.arrivals import replay
from bench.sources.pictures import content
from bench.workload import Arrival, Text
from triptych.core.errors import ConfigError

BLOCK_TOKENS = 512
"""Tokens behind one hash."""
FILE = "conversation_trace.jsonl"

Count = Annotated[int, msgspec.Meta(ge=0)]


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options."""

    path: str
    """A trace in Mooncake's format, or a folder with ``conversation_trace.jsonl``."""
    start_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """Of the trace's time."""


class Row(msgspec.Struct, frozen=True):
    """A line of the trace."""

    timestamp: float
    """Milliseconds."""
    input_length: Annotated[int, msgspec.Meta(ge=1)]
    output_length: Count
    hash_ids: tuple[Count, ...]
    """Of each block; equal where it and all before it are equal."""


class Mooncake:
    """The trace."""

    def __init__(self, settings: Settings, name: str = "mooncake") -> None:
        """Reads the file. Raises ConfigError."""
        self.name = name
        self.settings = settings
        self.rows = read(Path(settings.path))
        self._times = [row.timestamp / 1e3 for row in self.rows]
        self._span = 1 + max((max(row.hash_ids) for row in self.rows if row.hash_ids), default=0)

    def arrivals(self, rate: float | None, duration_s: float, seed: int) -> Iterator[Arrival]:
        """See ``Workload`` and ``arrivals.replay``. A hash is the seed of its block's text; when
        the trace begins anew its texts are new. ``seed`` draws the answers' seeds alone."""
        source = random.Random(f"mooncake {seed}")
        for index, at_s in replay(self._times, rate, duration_s, self.settings.start_s):
            lap, number = divmod(index, len(self.rows))
            row = self.rows[number]
            yield Arrival(
                at_s,
                blocks(row, lap * self._span),
                max(1, row.output_length),
                answer=content(source),
            )


def blocks(row: Row, offset: int = 0) -> tuple[Text, ...]:
    """The prompt: blocks of ``BLOCK_TOKENS``, the last one shorter."""
    last = row.input_length - BLOCK_TOKENS * (len(row.hash_ids) - 1)
    whole = (Text(offset + key, BLOCK_TOKENS) for key in row.hash_ids[:-1])
    return (*whole, Text(offset + row.hash_ids[-1], last))


def read(path: Path) -> tuple[Row, ...]:
    """The rows of a trace in order of time. Raises ConfigError that names the line."""
    file = path / FILE if path.is_dir() else path
    decode = msgspec.json.Decoder(Row).decode
    rows: list[Row] = []
    try:
        for number, line in enumerate(file.read_bytes().splitlines(), 1):
            row = decode(line)
            if -(-row.input_length // BLOCK_TOKENS) != len(row.hash_ids):
                raise ConfigError(f"mooncake: line {number}: hash_ids: one for each 512 tokens")
            rows.append(row)
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(f"mooncake: line {len(rows) + 1}: {error}") from None
    if not rows:
        raise ConfigError("mooncake: the trace is empty")
    return tuple(sorted(rows, key=lambda row: row.timestamp))
