"""The rows for a reader: one table, a file of JSON, a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from bench.report.terminal import aligned
from cli.gpu.rows import Rates, Row

HEAD = ("row", "ms", "spread", "floor ms", "bound", "of floor", "achieved", "target",
        "beside (ms)", "note")  # fmt: skip


_NOTE_WIDTH = 24
"""Longer ones stand below the table."""


def table(rows: Sequence[Row], rates: Rates, machine: str) -> str:
    """In Markdown, under a line that says what the floors are made of."""
    head = (
        f"{machine}\nfloors: {rates.flops_per_s / 1e12:.4g} TFLOP/s of a matrix product,"
        f" {rates.bytes_per_s / 1e9:.4g} GB/s of a copy (read and written)"
    )
    judged = [row.verdict for row in rows if row.verdict]
    left = sum(row.measured is None for row in rows)
    foot = [
        f"targets: {judged.count('met')} of {len(judged)} met; {left} of {len(rows)} rows left out",
        "sparse: attention of one layer alone, as no model uses that kernel yet",
    ]
    notes: dict[str, int] = {}
    cells = [_cells(row, notes) for row in rows]
    foot += [f"[{number}] {text}" for text, number in notes.items()]
    return "\n\n".join([head, aligned([HEAD, *cells]), "\n".join(foot)])


def _short(text: str, notes: dict[str, int]) -> str:
    """The text, or the number of the note below the table that holds it."""
    return text if len(text) <= _NOTE_WIDTH else f"[{notes.setdefault(text, len(notes) + 1)}]"


def _cells(row: Row, notes: dict[str, int]) -> list[str]:
    name, note = row.label, _short(row.note, notes)
    if row.measured is None or row.share is None:
        return [name, *[""] * (len(HEAD) - 2), note]
    seen, target = row.measured, ""
    if row.target is not None and row.reached is not None:
        target = f"{row.verdict}, {row.reached:.0%} ({row.target:.0%})"
    beside = ", ".join(
        f"{other} {_ms(found) if isinstance(found, float) else f'({_short(found, notes)})'}"
        for other, found in row.beside.items()
    )
    return [
        name,
        _ms(seen.median),
        f"{_ms(seen.low)} to {_ms(seen.high)} ({seen.runs})",
        _ms(row.floor_s),
        row.bound,
        f"{row.share:.0%}",
        _achieved(row),
        target,
        beside,
        note,
    ]


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.4g}"


def _achieved(row: Row) -> str:
    """What the bound is about."""
    seconds = row.measured.median if row.measured is not None else 0.0
    if row.bound == "bytes":
        return f"{row.num_bytes / seconds / 1e9:.4g} GB/s"
    return f"{row.flops / seconds / 1e12:.4g} TFLOP/s"


def write(path: Path, rows: Sequence[Row], rates: Rates, machine: dict[str, Any]) -> None:
    """As JSON: the machine, its rates, and rows with seconds, floors, shares and verdicts."""
    values = [
        {**msgspec.to_builtins(row), "share": row.share, "verdict": row.verdict} for row in rows
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {"machine": machine, "rates": msgspec.to_builtins(rates), "rows": values}
    path.write_bytes(msgspec.json.format(msgspec.json.encode(whole)) + b"\n")


def plot(path: Path, rows: Sequence[Row], machine: str) -> None:
    """As PNG: a bar of each row's share of its floor."""
    # Here and not above: it needs what only a plot needs.
    from bench.plots import draw_shares

    shares = {row.label: (row.share, row.verdict) for row in rows if row.share is not None}
    draw_shares(shares, path, machine)
