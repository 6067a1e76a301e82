"""A picture of a comparison: bars with their spread. matplotlib comes with the extra ``bench``."""

from collections.abc import Mapping, Sequence
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
