"""The rows for a reader: one table, a file of JSON, a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from bench.plots import draw_shares
from bench.report.terminal import aligned
from cli.gpu.rows import Rates, Row

HEAD = ("row", "ms", "least to greatest", "floor ms", "bound", "of floor", "achieved", "target",
        "beside (ms)", "note")  # fmt: skip


def table(rows: Sequence[Row], rates: Rates, machine: str) -> str:
    """In Markdown, under a line that says what the floors are made of."""
    head = (
        f"{machine}\nfloors: {rates.flops_per_s / 1e12:.4g} TFLOP/s of a matrix product,"
        f" {rates.bytes_per_s / 1e9:.4g} GB/s of a copy (read and written)"
    )
    judged = [row.verdict for row in rows if row.verdict]
    foot = f"targets: {judged.count('met')} of {len(judged)} met"
    left = sum(row.measured is None for row in rows)
    return "\n\n".join(
        [head, aligned([HEAD, *map(_cells, rows)]), f"{foot}; {left} of {len(rows)} rows left out"]
    )


def _cells(row: Row) -> list[str]:
    name = f"{row.group}: {row.name}"
    if row.measured is None or row.share is None:
        return [name, *[""] * (len(HEAD) - 2), row.note]
    seen, target = row.measured, ""
    if row.target is not None and row.reached is not None:
        target = f"{row.verdict}: {row.reached:.0%} of {row.target:.0%}"
    beside = ", ".join(
        f"{other} {_ms(found) if isinstance(found, float) else f'({found})'}"
        for other, found in row.beside.items()
    )
    return [
        name,
        _ms(seen.median),
        f"{_ms(seen.low)} to {_ms(seen.high)}, {seen.runs} runs",
        _ms(row.floor_s),
        row.bound,
        f"{row.share:.0%}",
        _achieved(row),
        target,
        beside,
        row.note,
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
    shares = {
        f"{row.group}: {row.name}": (row.share, row.verdict)
        for row in rows
        if row.share is not None
    }
    draw_shares(shares, path, machine)
