"""A picture of a comparison: bars with their spread. matplotlib comes with the extra ``bench``."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from bench.summary import FIGURES, Row

Points = Sequence[tuple[float, float]]

_SHOWN = ("TTFT p50", "TPOT p50", "requests")


def draw(rows: Sequence[Row], path: Path, title: str) -> None:
    """Write a PNG: a panel for each figure, a group of bars for each rate, a bar for each system.
    The line on a bar goes from the least to the greatest repetition."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    systems = list(dict.fromkeys(row.system for row in rows))
    rates = sorted({row.rate for row in rows})
    figure, panels = pyplot.subplots(1, len(_SHOWN), figsize=(4.2 * len(_SHOWN), 3.6))
    width = 0.8 / len(systems)
    for panel, name in zip(panels, _SHOWN, strict=True):
        unit, value = FIGURES[name]
        for row in rows:
            spread = row.spread(value)
            place = rates.index(row.rate) + (systems.index(row.system) - len(systems) / 2) * width
            panel.bar(
                place + width / 2,
                spread.median,
                width * 0.95,
                color=f"C{systems.index(row.system)}",
                label=row.system if row.rate == rates[0] else None,
                yerr=[[spread.median - spread.low], [spread.high - spread.median]],
                capsize=3,
            )
        panel.set_title(f"{name} ({unit})")
        panel.set_xticks(range(len(rates)), [f"{rate:g}/s" for rate in rates])
        panel.set_xlabel("arrival rate")
        panel.grid(axis="y", alpha=0.3)
    figure.suptitle(title, fontsize="medium")
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="lower center", ncol=len(systems))
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


class Panel(NamedTuple):
    """Lines in one pair of axes; ``ceiling`` is what no line can exceed."""

    title: str
    x: str
    lines: Mapping[str, Points]
    ceiling: float | None = None
    is_log: bool = False


def draw_lines(panels: Sequence[Panel], path: Path, title: str) -> None:
    """Write a PNG: panels side by side, three in a row."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows, columns = -(-len(panels) // 3), min(len(panels), 3)
    size = (4.4 * columns, 4.2 * rows)
    figure, axes = pyplot.subplots(rows, columns, figsize=size, squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, panel in zip(axes.flat, panels, strict=False):
        for name, points in panel.lines.items():
            axis.plot(*zip(*points, strict=True), marker="o", markersize=4, label=name)
        if panel.ceiling is not None:
            label = f"unlimited: {panel.ceiling:.1f}"
            axis.axhline(panel.ceiling, color="grey", linestyle="--", linewidth=1, label=label)
        if panel.is_log:
            axis.set_xscale("log")
        axis.set_ylim(bottom=0)
        axis.set_title(panel.title, fontsize="medium")
        axis.set_xlabel(panel.x)
        axis.grid(alpha=0.3)
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.2)}  # never over a line
        axis.legend(fontsize="x-small", ncol=2, **below)
    figure.suptitle(title, fontsize="medium")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


class Parity(NamedTuple):
    """Pairs of one figure; on the diagonal both are equal."""

    title: str
    bound: float
    """Relative error that is allowed: drawn as a band around the diagonal."""
    points: Mapping[str, Sequence[tuple[float, float, float, float]]]
    """By series: measured, its least and its greatest, and what was to be equal."""


def draw_parity(panels: Sequence[Parity], path: Path, title: str) -> None:
    """Write a PNG: a panel for each figure, measured to the right, simulated upwards, both on
    logarithmic axes. A line across a point goes from the least to the greatest repetition."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(1, len(panels), figsize=(3.7 * len(panels), 4.4), squeeze=False)
    for axis, panel in zip(axes.flat, panels, strict=True):
        every = [value for some in panel.points.values() for each in some for value in each]
        ends = [0.8 * min(every), 1.25 * max(every)]
        below, above = ([(1 + sign * panel.bound) * end for end in ends] for sign in (-1, 1))
        axis.fill_between(ends, below, above, color="C2", alpha=0.15)
        axis.plot(ends, ends, color="grey", linewidth=1)
        for index, (name, some) in enumerate(panel.points.items()):
            x, low, high, y = zip(*some, strict=True)
            spread = [
                [max(0.0, at - least) for at, least in zip(x, low, strict=True)],
                [max(0.0, most - at) for at, most in zip(x, high, strict=True)],
            ]
            axis.errorbar(
                x, y, xerr=spread, fmt="o^sDvP"[index % 6], color=f"C{index}", markersize=5,
                elinewidth=0.8, alpha=0.8, label=name,
            )  # fmt: skip
        axis.set(xscale="log", yscale="log", xlim=ends, ylim=ends, aspect="equal")
        for each in (axis.xaxis, axis.yaxis):
            each.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
            each.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
            each.set_minor_formatter(ticker.NullFormatter())
        axis.set_title(f"{panel.title}, bound {panel.bound:.0%}", fontsize="medium")
        axis.set_xlabel("measured (ms)")
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("simulated (ms)")
    figure.suptitle(title, fontsize="medium")
    figure.tight_layout(rect=(0, 0.1, 1, 1))
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="lower center", ncol=6, fontsize="small"
    )
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


class Band(NamedTuple):
    """A number, the band that it should lie in, and what somebody else measured."""

    name: str
    low: float | None
    high: float | None
    value: float | None
    published: float | None


def draw_bands(bands: Sequence[Band], path: Path) -> None:
    """Write a PNG: a row for each number, stretched so that its band fills the same width."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(9.0, 0.3 * len(bands) + 1.2))
    axis.axvspan(0.0, 1.0, color="C2", alpha=0.15)
    for row, band in enumerate(bands):
        place = _stretched(band)
        if band.published is not None:
            axis.plot(place(band.published), row, "x", color="grey")
        if band.value is not None:
            is_above = band.low is None or band.value >= band.low
            is_within = is_above and (band.high is None or band.value <= band.high)
            axis.plot(place(band.value), row, "o", color="C2" if is_within else "C3")
        told = "not measured" if band.value is None else f"{band.value:.3g}"
        axis.annotate(told, (1.01, row), xycoords=("axes fraction", "data"), va="center", size=8)
    axis.set_yticks(range(len(bands)), [band.name for band in bands], size=8)
    axis.set_ylim(len(bands) - 0.5, -0.5)
    axis.set_xlim(-1.0, 2.0)
    axis.set_xticks([0.0, 1.0], ["low end", "high end"])
    axis.set_title("dot: result, x: published, green: expected band", fontsize="medium")
    axis.grid(axis="y", alpha=0.2)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _stretched(band: Band) -> Callable[[float], float]:
    """Where a number is drawn: the band from 0 to 1, what is far off at the edge. A band with one
    end is as wide as that end is large."""
    ends = [end for end in (band.low, band.high) if end is not None]
    if len(ends) == 2 and ends[0] < ends[1]:
        low, width = ends[0], ends[1] - ends[0]
    else:
        width = abs(ends[0]) or 1.0
        low = ends[0] if band.high is None else ends[0] - width
        if len(ends) == 2:
            low = ends[0] - width / 2
    return lambda value: min(1.95, max(-0.95, (value - low) / width))


Bars = Mapping[str, tuple[float, float, float]]
"""Value, least and greatest by name."""


def draw_bars(panels: Mapping[str, Bars], path: Path, title: str) -> None:
    """Write a PNG: panels by title, three in a row, a name's bars in one colour."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(name for heights in panels.values() for name in heights))
    rows, columns = -(-len(panels) // 3), min(len(panels), 3)
    size = (4.4 * columns, 3.6 * rows)
    figure, axes = pyplot.subplots(rows, columns, figsize=size, squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, (heading, heights) in zip(axes.flat, panels.items(), strict=False):
        for name, (value, low, high) in heights.items():
            place = names.index(name)
            spread = [[max(0.0, value - low)], [max(0.0, high - value)]]
            axis.bar(place, value, 0.85, color=f"C{place}", yerr=spread, capsize=3)
        axis.set_xticks(range(len(names)), names, rotation=40, ha="right", fontsize="x-small")
        axis.set_title(heading, fontsize="medium")
        axis.grid(axis="y", alpha=0.3)
    figure.suptitle(title, fontsize="medium")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


_VERDICTS = {"met": "C2", "missed": "C3", "": "C0"}


def draw_shares(shares: Mapping[str, tuple[float, str]], path: Path, title: str) -> None:
    """Write a PNG: a bar for each share of a floor, coloured by its verdict (``met``, ``missed``
    or nothing)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(8.0, 0.22 * len(shares) + 1.2))
    values = [share for share, _ in shares.values()]
    colors = [_VERDICTS[verdict] for _, verdict in shares.values()]
    axis.barh(range(len(shares)), values, 0.8, color=colors)
    axis.axvline(1.0, color="grey", linestyle="--", linewidth=1)
    axis.set_yticks(range(len(shares)), list(shares), fontsize="x-small")
    axis.set_ylim(len(shares) - 0.5, -0.5)
    axis.set_xlabel("share of the floor; green: target met, red: missed, blue: no target")
    axis.set_title(title, fontsize="x-small")
    axis.grid(axis="x", alpha=0.3)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


Range = list[tuple[float, float, float, float]]
"""Points of a line: x, value, least and greatest."""


def draw_ranges(panels: Mapping[str, Mapping[str, Range]], path: Path, title: str) -> None:
    """Write a PNG: panels side by side, a line for each system from the least x to the greatest,
    both axes logarithmic; a line through a point goes from its least to its greatest."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(1, len(panels), figsize=(4.6 * len(panels), 4.8), squeeze=False)
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    ticks = sorted({x for lines in panels.values() for some in lines.values() for x, *_ in some})
    for axis, (heading, lines) in zip(axes.flat, panels.items(), strict=True):
        for name, some in lines.items():
            x, value, low, high = zip(*some, strict=True)
            index = names.index(name)
            spread = [
                [at - least for at, least in zip(value, low, strict=True)],
                [most - at for at, most in zip(value, high, strict=True)],
            ]
            # Moved apart a little: spreads at the same x would hide each other.
            places = [at * 1.04 ** (index - len(names) / 2 + 0.5) for at in x]
            axis.errorbar(
                places, value, yerr=spread, color=f"C{index}", marker="o^sDvP"[index % 6],
                markersize=6, linewidth=1.5, elinewidth=1.2, capsize=3, label=name,
            )  # fmt: skip
        axis.set(xscale="log", yscale="log", xlabel="clients")
        axis.set_xticks(ticks, [f"{at:g}" for at in ticks])
        axis.xaxis.set_minor_locator(ticker.NullLocator())
        axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
        axis.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
        axis.yaxis.set_minor_formatter(ticker.NullFormatter())
        axis.set_title(heading, fontsize="medium")
        axis.grid(alpha=0.3)
    figure.suptitle(title, fontsize="medium")
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="lower center", ncol=max(1, len(names)))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
