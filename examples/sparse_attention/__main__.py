"""``python -m examples.sparse_attention``: what selectors of tiles keep, and what they lose.

On the demo model's own attention and answers, and on synthetic long videos. Prints the tables; with
``--page`` and ``--plot`` writes them into the documentation.
"""

import argparse
import importlib
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from cli.compare import write_into
from cli.progress import Bar
from examples.sparse_attention.measure import Loss, Sample
from examples.sparse_attention.plot import Panel, Point, draw
from examples.sparse_attention.settings import BOUND, Setting, large, small
from examples.sparse_attention.synthetic import context
from triptych.executor.attention.selectors.rules import Rules

RECALL = "recall of attention mass"


class Row(NamedTuple):
    """One setting's figures. ``low`` is the recall that nine tenths of the rows reach."""

    setting: Setting
    density: float
    recall: float
    low: float
    error: float
    accuracy: float | None = None


def parser() -> argparse.ArgumentParser:
    """Words of the command line."""
    top = argparse.ArgumentParser(prog="examples.sparse_attention", description=__doc__)
    top.add_argument("--questions", type=int, default=120, help="asked of the demo model")
    top.add_argument("--frames", default="8,29", help="of the synthetic videos, 560 tokens each")
    top.add_argument("--prompts", type=int, default=5, help="whose attention is looked at")
    top.add_argument("--plot", type=Path, help="PNG to write")
    top.add_argument("--page", type=Path, help="page whose tables are to be replaced")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    words = parser().parse_args(arguments)
    torch.set_num_threads(1)
    began, bar = time.process_time(), Bar()
    demo, dense = demo_rows(words.questions, words.prompts, bar)
    panels = [
        Panel(
            "Demo model, 280 to 550 tokens, tiles of 16", "recall of attention mass", lines(demo)
        ),
        Panel(
            f"Demo model, {words.questions} questions",
            "answers that are right",
            lines(demo, is_accuracy=True),
            dense,
        ),
    ]
    heading = f"Demo model, tiles of 16; {words.questions} questions, {dense:.1%} right when dense:"
    parts = [heading, table(demo)]
    for frames in map(int, words.frames.split(",")):
        rows, tokens = synthetic_rows(frames, bar)
        name = f"Synthetic video, {frames} frames, {tokens:,} tokens, tiles of 128"
        panels.append(Panel(name, RECALL, lines(rows)))
        parts += [f"{name}:", table(rows)]
    bar.done()
    parts.append(f"{time.process_time() - began:.0f} s of one core, torch {torch.__version__}.")
    text = "\n\n".join(parts)
    print(text)
    if words.plot:
        draw(panels, words.plot, BOUND)
    if words.page:
        write_into(words.page, text)
    return 0


def demo_rows(questions: int, prompts: int, bar: Bar) -> tuple[list[Row], float]:
    """Rows of the demo model, and its dense accuracy."""
    bar("the demo model reads its pictures", 0.01)
    model = importlib.import_module("examples.demo_model.sparse").DemoModel()
    groups = model.groups(questions)
    dense = right(model, groups, None, bar, "dense", 0.05)
    every = sorted(groups, key=lambda group: group.inputs["input_ids"].shape[1])
    chosen = every[:: max(1, len(every) // prompts)][:prompts]
    settings = small()
    rules = Rules(16, 16)
    samples = [
        Sample(query, keys, values, group.spans, scale, rules)
        for group in chosen
        for query, keys, values, scale in model.layers(group)
    ]
    rows = []
    for number, setting in enumerate(settings):
        share = 0.2 + 0.6 * number / len(settings)
        told = f"demo model: {setting.family}, {setting.label}"
        bar(told, share)
        row = row_of(setting, [sample.loss(setting.selector) for sample in samples])
        if setting.family != BOUND:
            row = row._replace(accuracy=right(model, groups, setting, bar, told, share))
        rows.append(row)
    return rows, dense


def right(
    model: Any, groups: Iterable[Any], setting: Setting | None, bar: Bar, told: str, share: float
) -> float:
    """Share of right answers."""
    hits: list[bool] = []
    for group in groups:
        bar(told, share)
        hits += model.right(group, setting.selector if setting else None)
    return sum(hits) / len(hits)


def synthetic_rows(frames: int, bar: Bar) -> tuple[list[Row], int]:
    """Rows of a synthetic video, and its tokens."""
    made = context(frames)
    sample = Sample(made.query, made.keys, made.values, made.spans, 1.0, Rules())
    rows = []
    settings = large()
    for number, setting in enumerate(settings):
        bar(f"{frames} frames: {setting.family}, {setting.label}", 0.8 + number / len(settings) / 5)
        rows.append(row_of(setting, [sample.loss(setting.selector)]))
    return rows, len(made.query)


def row_of(setting: Setting, losses: Sequence[Loss]) -> Row:
    """All samples' rows and heads together."""
    recall = torch.cat([loss.recall.flatten() for loss in losses])
    error = torch.cat([loss.error.flatten() for loss in losses])
    return Row(
        setting,
        sum(loss.density for loss in losses) / len(losses),
        recall.mean().item(),
        recall.quantile(0.1).item(),
        error.mean().item(),
    )


def lines(rows: Sequence[Row], *, is_accuracy: bool = False) -> dict[str, list[Point]]:
    """Points of the plot by family."""
    found: dict[str, list[Point]] = {}
    for row in rows:
        y = row.accuracy if is_accuracy else row.recall
        if y is None:
            continue
        low = None if is_accuracy else row.low
        found.setdefault(row.setting.family, []).append((row.density, y, low))
    return found


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    head = ["selector", "setting", "density", "recall", "nine tenths reach", "error of outputs"]
    has_answers = rows[0].accuracy is not None
    head += ["right answers"] * has_answers
    text = ["| " + " | ".join(head) + " |", "|---|---" + "|--:" * (len(head) - 2) + "|"]
    for row in rows:
        figures = [row.density, row.recall, row.low, row.error]
        cells = [row.setting.family, row.setting.label, *(f"{one:.1%}" for one in figures)]
        if has_answers:
            cells.append("" if row.accuracy is None else f"{row.accuracy:.1%}")
        text.append("| " + " | ".join(cells) + " |")
    return "\n".join(text)


if __name__ == "__main__":
    sys.exit(main())
