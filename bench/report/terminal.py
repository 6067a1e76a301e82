"""A study as a table of plain text, for a terminal or a page in Markdown."""

from collections.abc import Callable, Sequence

from bench.figures import Figures
from bench.goodput import LEVELS
from bench.study import Goodput, Setting, Study, goodputs, settings

Column = tuple[str, Callable[[Figures], str]]


def _ms(value_s: float) -> str:
    return _short(value_s * 1e3)


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


COLUMNS: tuple[Column, ...] = (
    ("attained %", lambda f: f"{100 * f.attainment:.1f}"),
    ("TTFT p50 ms", lambda f: _ms(f.ttft_s.p50)),
    ("p90", lambda f: _ms(f.ttft_s.p90)),
    ("p99", lambda f: _ms(f.ttft_s.p99)),
    ("TPOT p50 ms", lambda f: _ms(f.tpot_s.p50)),
    ("p99", lambda f: _ms(f.tpot_s.p99)),
    ("ITL p99 ms", lambda f: _ms(f.itl_s.p99)),
    ("effective /s", lambda f: _short(f.effective_requests_per_s)),
    ("tokens/s", lambda f: _short(f.tokens_per_s)),
    ("requests", lambda f: str(f.requests)),
    ("not answered", lambda f: str(f.requests - f.outcomes.get("ok", 0))),
)


def table(study: Study) -> str:
    """A Markdown table of every setting, then the goodput of every system with several rates."""
    found = settings(study)
    head = ["system", "rate /s", "seeds", *(name for name, _ in COLUMNS)]
    rows = [_row(each) for each in found]
    text = [aligned([head, *rows])]
    if len({each.rate for each in found}) > 1:
        levels = [goodputs(found, level) for level in LEVELS]
        head = ["goodput /s", *(f"at {level:.0%}" for level in LEVELS), "95% CI at 90%", "per GPU"]
        text.append(aligned([head, *(_goodput(each) for each in zip(*levels, strict=True))]))
    invalid = [f"{run.system} at {run.rate:g}/s, seed {run.seed}: {run.invalid}"
               for run in study.runs if run.invalid]  # fmt: skip
    if invalid:
        text.append("NOT TO BE USED:\n" + "\n".join(f"  {line}" for line in invalid))
    return "\n\n".join(text)


def _row(each: Setting) -> list[str]:
    figures = [value(each.pooled) for _, value in COLUMNS]
    return [each.system, f"{each.rate:.4g}", str(len(each.runs)), *figures]


def _goodput(levels: Sequence[Goodput]) -> list[str]:
    least = levels[0]
    spread, gpus = least.interval, least.num_gpus
    told_spread = f"{_short(spread.low)} to {_short(spread.high)}"
    return [
        least.system,
        *(told(each) for each in levels),
        told_spread if least.num_seeds > 1 else "one seed",
        _short(least.crossing.rate / gpus),
    ]


def told(goodput: Goodput) -> str:
    """The rate, and whether it is a bound only."""
    found = goodput.crossing
    mark = "" if found.is_monotone else f" (last crossing {_short(found.last)})"
    if found.kind == "below":
        return f"< {_short(found.bad)}{mark}"
    return f"{'>= ' if found.kind == 'above' else ''}{_short(found.rate)}{mark}"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Markdown whose columns are aligned, so that it reads well as it is."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| "
        + " | ".join(
            word.rjust(width) if column else word.ljust(width)
            for column, (word, width) in enumerate(zip(row, widths, strict=True))
        )
        + " |"
        for row in rows
    ]
    rule = "|" + "|".join(
        "-" * (width + 1) + (":" if column else "-") for column, width in enumerate(widths)
    )
    return "\n".join([lines[0], f"{rule}|", *lines[1:]])
