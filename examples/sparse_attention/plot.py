"""Density against what is kept, as a PNG. matplotlib comes with the extra ``bench``."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot
from matplotlib.ticker import FuncFormatter, MaxNLocator

_INK, _PALE = "#333333", "#8a8a8a"
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
"""Distinct for the colour-blind too (Okabe and Ito)."""
_MARKS = "osD^vP"

Point = tuple[float, float, float | None]
"""Density, value and, where there is one, the value that nine tenths of the rows reach."""


class Panel(NamedTuple):
    """One pair of axes, its points by family."""

    title: str
    y: str
    lines: Mapping[str, Sequence[Point]]
    level: float | None = None
    """Where dense attention stands, if not at 1."""


def draw(panels: Sequence[Panel], path: Path, bound: str) -> None:
    """Write a PNG: panels two in a row; a line for each family, ``bound`` in grey; thin dots below
    a line are what nine tenths of the rows reach."""
    rows = -(-len(panels) // 2)
    figure, axes = pyplot.subplots(rows, 2, figsize=(11.0, 4.3 * rows + 0.9), squeeze=False)
    families = dict.fromkeys(name for panel in panels for name in panel.lines if name != bound)
    looks = dict(zip(families, zip(_COLOURS, _MARKS, strict=True), strict=False))
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, panel in zip(axes.flat, panels, strict=False):
        for name, points in panel.lines.items():
            colour, mark = looks.get(name, (_PALE, ""))
            x, y, low = zip(*sorted(points), strict=True)
            style = "--" if name == bound else "-"
            axis.plot(x, y, style, marker=mark, color=colour, lw=1.8, ms=5, label=name, zorder=3)
            if name != bound and low[0] is not None:
                axis.plot(x, low, ":", marker=mark, color=colour, lw=1.0, ms=2.5, alpha=0.55)
        if panel.level is not None:
            axis.axhline(panel.level, color=_PALE, lw=0.8)
            axis.annotate(
                "dense", (0.01, panel.level), xycoords=("axes fraction", "data"),
                xytext=(0, 3), textcoords="offset points", color=_PALE, size=8,
            )  # fmt: skip
        axis.set_title(panel.title, size=10.5, color=_INK, loc="left")
        axis.set_xlabel("density: share of causal tiles kept", size=9, color=_INK)
        axis.set_ylabel(panel.y, size=9, color=_INK)
        least = min(point[0] for points in panel.lines.values() for point in points)
        axis.set_xlim(math.floor(least * 10 - 0.2) / 10, 1.0)
        for each in (axis.xaxis, axis.yaxis):
            each.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
            each.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
        axis.tick_params(labelsize=8.5, colors=_INK, length=0)
        axis.grid(color="#e4e4e4", lw=0.7)
        for side in ("top", "right", "left", "bottom"):
            axis.spines[side].set_visible(False)
    named: dict[str, Any] = {}
    for axis in axes.flat:
        handles, names = axis.get_legend_handles_labels()
        named.update(zip(names, handles, strict=True))
    named[bound] = named.pop(bound)  # the last one
    figure.tight_layout(rect=(0, 0.085, 1, 1), h_pad=2.2, w_pad=2.0)
    figure.legend(
        list(named.values()), list(named), loc="lower center", bbox_to_anchor=(0.5, 0.022),
        ncol=4, frameon=False, fontsize=9,
    )  # fmt: skip
    note = (
        "solid: mean over rows · dotted: what nine tenths of the rows reach · "
        "rows of text are dense and not counted"
    )
    figure.text(0.5, 0.008, note, ha="center", size=8.5, color=_PALE)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
