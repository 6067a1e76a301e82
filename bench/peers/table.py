"""The comparison for a reader: medians of the rounds with their spread, as Markdown, and panels.

Rows of notes are figures of an earlier time on a like machine, and say so in every cell of theirs
that could be taken for a measurement. Knows no server.
"""

from collections.abc import Mapping, Sequence
from statistics import median

import msgspec

from bench.peers.rounds import Found, Measured
from bench.plots import Range
from bench.summary import FIGURES, Spread

SHOWN = ("TTFT p50", "TPOT p50", "requests")
_DIGITS = {"TTFT p50": 1, "TPOT p50": 2, "requests": 2}

NOTES = (
    ("OpenVINO GenAI 2026.4, in process", 1, "34-45", "1.0", "11.8"),
    ("OpenVINO GenAI 2026.4, in process", 4, "", "", "15.7"),
    ("llama.cpp server", 1, "45", "0.4", "13.7"),
    ("llama.cpp server", 4, "", "2.0", "28.6"),
)
"""System, concurrency, TTFT, TPOT, requests/s: compiled engines, for scale."""


class Level(msgspec.Struct, frozen=True):
    """One system at one concurrency, over all rounds."""

    system: str
    concurrency: int
    figures: dict[str, Spread]
    """By the names of ``SHOWN``; empty if a round answered nothing."""
    asked: int
    answered: int
    same: int | None
    """Answers that are word by word those of the first system; None if it does not tell them."""
    late_p99_s: float
    """The worst round's, of the client."""


def levels(found: Found) -> list[Level]:
    """By concurrency, systems in the order in which they were settled."""
    reference = next(iter(found.settled), "")
    first = {
        (one.round, one.concurrency): one.texts for one in found.measured if one.system == reference
    }
    every = sorted({one.concurrency for one in found.measured})
    return [
        _level([one for one in found.measured if (one.system, one.concurrency) == key], first)
        for key in ((system, clients) for clients in every for system in found.settled)
        if any((one.system, one.concurrency) == key for one in found.measured)
    ]


def _level(rounds: Sequence[Measured], first: Mapping[tuple[int, int], Mapping[str, str]]) -> Level:
    are_answered = all(one.summary.outcomes.get("ok") for one in rounds)
    tells = all(one.texts for one in rounds)
    return Level(
        rounds[0].system,
        rounds[0].concurrency,
        {name: _spread(name, rounds) for name in SHOWN} if are_answered else {},
        sum(one.summary.requests for one in rounds),
        sum(one.summary.outcomes.get("ok", 0) for one in rounds),
        sum(_same(one, first) for one in rounds) if tells else None,
        max(one.late_p99_s for one in rounds),
    )


def _spread(name: str, rounds: Sequence[Measured]) -> Spread:
    _, figure = FIGURES[name]
    values = [figure(one.summary) for one in rounds]
    return Spread(median(values), min(values), max(values))


def _same(one: Measured, first: Mapping[tuple[int, int], Mapping[str, str]]) -> int:
    expected = first.get((one.round, one.concurrency), {})
    return sum(expected.get(question) == text for question, text in one.texts.items())


def table(rows: Sequence[Level]) -> str:
    """Markdown."""
    names = [f"{name} ({FIGURES[name][0]})" for name in SHOWN]
    lines = [
        f"| clients | system | {' | '.join(names)} | answered | same answers |",
        "|---|---|" + "---|" * (len(names) + 2),
    ]
    for row in rows:
        cells = [
            _cell(name, row.figures[name]) if row.figures else "none answered" for name in SHOWN
        ]
        same = "not told" if row.same is None else f"{row.same} of {row.answered}"
        lines.append(
            f"| {row.concurrency} | {row.system} | {' | '.join(cells)} "
            f"| {row.answered} of {row.asked} | {same} |"
        )
    return "\n".join(lines)


def notes() -> str:
    """Markdown, in a table of its own: nothing of it was measured here."""
    lines = [
        "| clients | system (from notes, not this run) | TTFT (ms) | TPOT (ms) | requests (/s) |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {clients} | {system} | {' | '.join(cell or '-' for cell in cells)} |"
        for system, clients, *cells in NOTES
    ]
    return "\n".join(lines)


def _cell(name: str, spread: Spread) -> str:
    digits = _DIGITS[name]
    low, middle, high = (f"{x:.{digits}f}" for x in (spread.low, spread.median, spread.high))
    return f"{middle} ({low}..{high})"


def panels(rows: Sequence[Level]) -> dict[str, dict[str, Range]]:
    """For ``plots.draw_ranges``."""
    found: dict[str, dict[str, Range]] = {}
    for name in SHOWN:
        lines = found.setdefault(f"{name} ({FIGURES[name][0]})", {})
        for row in rows:
            if row.figures:
                spread = row.figures[name]
                points = lines.setdefault(row.system, [])
                points.append((row.concurrency, spread.median, spread.low, spread.high))
    return found
