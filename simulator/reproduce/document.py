"""``docs/reproduction.md``, the table on a terminal, and the JSON of a run of all targets."""

from collections.abc import Mapping, Sequence
from typing import Any

from simulator.reproduce.outcome import Outcome, Result
from simulator.reproduce.target import Check, Target

Pairs = Sequence[tuple[Target, Result]]

_HEAD = """\
# Reproduction of published results

Written by `make reproduce`; not edited by hand. Each target is a file in
[`examples/reproduce/`](../examples/reproduce): a published result, the scenario that should show it
in the [simulator](simulator.md), and the band within which it counts as shown. Bands were fixed
before the first run. What was not: how long target 2 runs (600 s a rate, so that chance is small
beside its band), and what of its source's set-up target 5 takes over (batch size 1, 0.7 s for every
switch, a lease as long as the run). No target has a constant of its own: costs, wires, policies and
defaults are those of every scenario; a file chooses among them as any scenario does.

A *pass* says that the mechanism is in the code and behaves as published on modelled hardware. It
says nothing of absolute speed. A *miss* stays here with its reason until it is understood.
"""


def text(pairs: Pairs, about: Mapping[str, str]) -> str:
    """The page. ``about``: date, versions, machine, command."""
    lines = [_HEAD, *(f"- {name}: {value}" for name, value in about.items()), ""]
    words = [result.verdict(target) for target, result in pairs]
    counts = ", ".join(f"{words.count(word)} {word}" for word in ("pass", "miss", "absent"))
    lines += [f"{len(pairs)} targets: {counts}.", "", "![All checks](figures/reproduction.png)", ""]
    lines += ["| # | target | source | verdict |", "|---|---|---|---|"]
    for (target, _), word in zip(pairs, words, strict=True):
        link = f"[{target.title}](#{_anchor(target)})"
        lines.append(f"| {target.number} | {link} | {target.source.partition(',')[0]} | {word} |")
    for target, result in pairs:
        lines += ["", *_section(target, result)]
    return "\n".join(lines) + "\n"


def table(pairs: Pairs) -> str:
    """For a terminal: a line for each check."""
    rows = [("#", "check", "published", "band", "result", "verdict")]
    for target, result in pairs:
        for one, check in result.checked(target):
            rows.append((f"{target.number}", check.says, *_cells(one, check)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def as_json(pairs: Pairs, about: Mapping[str, str]) -> dict[str, Any]:
    """Everything as plain values."""
    return {
        **about,
        "targets": [
            {
                "number": target.number,
                "title": target.title,
                "verdict": result.verdict(target),
                "num_requests": result.num_requests,
                "cpu_s": round(result.cpu_s, 1),
                "checks": [
                    {
                        "says": check.says,
                        "published": check.published,
                        "low": check.low,
                        "high": check.high,
                        "value": one.value,
                        "verdict": one.verdict(check),
                    }
                    for one, check in result.checked(target)
                ],
            }
            for target, result in pairs
        ],
    }


def _section(target: Target, result: Result) -> list[str]:
    checked = result.checked(target)
    lines = [
        f"## {target.number}. {target.title}",
        "",
        f"{target.source}. {target.claim.strip()}",
        "",
        target.setting.strip(),
        "",
        "| compared | published | expected | result | verdict |",
        "|---|---|---|---|---|",
    ]
    lines += ["| " + " | ".join((check.says, *_cells(one, check))) + " |" for one, check in checked]
    for one, check in checked:
        if one.note:
            lines += ["", f"Not measured: {one.note}."]
        if one.verdict(check) == "miss":
            reason = check.miss.strip() or "Not understood yet."
            lines += ["", f"*Miss: {check.says}.* {reason}"]
    simulated = f"{result.num_requests:,} requests simulated, " if result.num_requests else ""
    return [*lines, "", f"{simulated}{result.cpu_s:.0f} s of CPU."]


def _cells(one: Outcome, check: Check) -> tuple[str, str, str, str]:
    published = "" if check.published is None else f"{check.published:.4g}"
    result = "-" if one.value is None else f"{one.value:.4g}"
    return published, check.band, result, one.verdict(check)


def _anchor(target: Target) -> str:
    """As GitHub makes it of a heading."""
    kept = (c for c in f"{target.number}. {target.title}".lower() if c.isalnum() or c in " -_")
    return "".join(kept).replace(" ", "-")
