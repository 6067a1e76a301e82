"""Results of a contest as tables of Markdown and as numbers for plots.

Every row is a workload and a number of GPUs; the first system is ours. Computes no goodput.
"""

from collections.abc import Sequence

from bench.report.terminal import aligned
from simulator.contest.contest import Contest
from simulator.contest.match import Result

Row = tuple[str, int]
"""A workload and a number of GPUs."""


def rows_of(contest: Contest) -> list[Row]:
    """In the contest's order."""
    return [(load.name, number) for number in contest.num_gpus for load in contest.loads]


def of_row(results: Sequence[Result], row: Row) -> dict[str, Result]:
    """Results of a row by system."""
    return {one.system: one for one in results if (one.load, one.num_gpus) == row}


def told(result: Result) -> str:
    """Goodput per GPU with its interval over the seeds."""
    spread, mark = result.goodput.interval, ""
    if result.goodput.crossing.kind != "crossed":
        mark = {"above": ">= ", "below": "< "}[result.goodput.crossing.kind]
    text = f"{mark}{_short(result.per_gpu)}"
    if result.goodput.num_seeds < 2:
        return text
    low, high = spread.low / result.num_gpus, spread.high / result.num_gpus
    return f"{text} ({_short(low)} to {_short(high)})"


def goodputs(contest: Contest, results: Sequence[Result]) -> str:
    """Requests per second and GPU of every system in every row; the best of each is bold."""
    names = [entry.name for entry in contest.systems]
    head = ["workload", "GPUs", *names, "first over best other"]
    lines = [head]
    for row in rows_of(contest):
        found = of_row(results, row)
        best = max((one.per_gpu for one in found.values()), default=0.0)
        words = [
            (f"**{told(found[name])}**" if found[name].per_gpu == best else told(found[name]))
            if name in found
            else "-"
            for name in names
        ]
        lines.append([row[0], str(row[1]), *words, _margin(contest, found)])
    return aligned(lines)


def layouts(contest: Contest, results: Sequence[Result]) -> str:
    """Which layout each system chose in each row, and what it missed first."""
    head = ["workload", "GPUs", "system", "layout", "goodput /s", "missed beyond it", "layouts"]
    lines = [head]
    for row in rows_of(contest):
        found = of_row(results, row)
        for entry in contest.systems:
            if entry.name in found:
                one = found[entry.name]
                lines.append([row[0], str(row[1]), entry.name, *_details(one)])
    return aligned(lines)


def fairness(contest: Contest) -> str:
    """What of each system is configured and what is not."""
    lines = [["system", "configured", "not configured"]]
    lines += [[each.name, each.does or "-", each.lacks or "-"] for each in contest.systems]
    return aligned(lines)


def efficiencies(contest: Contest, results: Sequence[Result]) -> str:
    """Goodput of ``k`` times as many GPUs over ``k`` times the goodput of the fewest."""
    least = min(contest.num_gpus)
    head = ["workload", "system", "GPUs", "k", "layout", "goodput /s", "efficiency",
            "missed beyond it"]  # fmt: skip
    lines = [head]
    for load in contest.loads:
        for entry in contest.systems:
            for number in sorted(contest.num_gpus):
                one = of_row(results, (load.name, number)).get(entry.name)
                if one is not None:
                    layout, rate, missed, _ = _details(one)
                    share = efficiency(results, one, least)
                    told_share = "-" if share is None else f"{share:.3f}"
                    k = f"{number / least:g}"
                    words = [load.name, entry.name, str(number), k, layout, rate, told_share]
                    lines.append([*words, missed])
    return aligned(lines)


def efficiency(results: Sequence[Result], one: Result, least: int) -> float | None:
    """Of one result, compared with the same system on ``least`` GPUs; None without that."""
    base = of_row(results, (one.load, least)).get(one.system)
    if base is None or base.per_gpu == 0.0:
        return None
    return one.per_gpu / base.per_gpu


def _margin(contest: Contest, found: dict[str, Result]) -> str:
    ours, *others = (entry.name for entry in contest.systems)
    rates = [found[name].per_gpu for name in others if name in found]
    if ours not in found or not rates or max(rates) == 0.0:
        return "-"
    return f"{100 * (found[ours].per_gpu / max(rates) - 1):+.0f} %"


def _details(one: Result) -> tuple[str, str, str, str]:
    chunk = dict(setting.split("=", 1) for setting in one.settings).get("engine.token_budget", "")
    missed = ", ".join(
        f"{what} {share:.0%}" for what, share in one.missed.items() if share >= 0.005
    )
    rate = _short(one.goodput.interval.mean)
    return f"`{one.topology}`, {chunk or 'default'} tokens", rate, missed, str(len(one.tried) or 1)


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
