"""Everything that the page shows, as one value of plain lists and dictionaries.

Computes nothing itself: figures, goodput, curves and timelines come from their own files. Decides
what is left out so that a page stays small.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from bench.figures import counted
from bench.goodput import LEVELS
from bench.report.curves import SHARES, curves, phases, short
from bench.report.timeline import timeline
from bench.run import Run
from bench.study import Setting, Study, goodputs, settings

_MAX_TIMELINES = 6
_LEVEL = LEVELS[0]


def document(study: Study) -> dict[str, Any]:
    """The value. Raises ValueError for a study without runs."""
    if not study.runs:
        raise ValueError("runs: a report needs at least one")
    found = settings(study)
    return {
        "title": study.title,
        "workloads": list(dict.fromkeys(run.workload for run in study.runs)),
        "seeds": sorted({run.seed for run in study.runs}),
        "duration": max(run.duration_s for run in study.runs),
        "warmup": max(run.warmup_s for run in study.runs),
        "requests": sum(len(counted(run)) for run in study.runs),
        "systems": list(dict.fromkeys(each.system for each in found)),
        "pace": study.pace,
        "levels": LEVELS,
        "price": study.price_per_gpu_hour,
        "currency": study.currency,
        "invalid": sorted({f"{run.system}, {run.rate:g}/s, seed {run.seed}: {run.invalid}"
                           for run in study.runs if run.invalid}),
        "sweep": [_point(each) for each in found],
        "goodput": [_goodput(each) for level in LEVELS for each in goodputs(found, level)],
        "shares": [round(share, 6) for share in SHARES],
        "curves": [curves(each) for each in found],
        "slos": _slos(study.runs),
        "phases": [part for each in found for part in phases(each)],
        "timelines": [line for run in _shown(found) if (line := timeline(run))],
        "scenario": study.scenario,
        "hardware": study.hardware,
        "fits": [msgspec.to_builtins(fit) for fit in study.fits],
        "notes": _notes(study),
    }  # fmt: skip


def _point(setting: Setting) -> dict[str, Any]:
    """One system at one rate: a row of the table, a point of the sweep."""
    pooled, spread = setting.pooled, setting.attainment
    words = _shortened(msgspec.to_builtins(pooled))
    return {
        "system": setting.system,
        "rate": setting.rate,
        "gpus": setting.num_gpus,
        "seeds": len(setting.runs),
        "low": round(spread.low, 5),
        "high": round(spread.high, 5),
        "figures": words,
    }


def _goodput(found: Any) -> dict[str, Any]:
    words: dict[str, Any] = _shortened(msgspec.to_builtins(found))
    words["isMonotone"] = found.crossing.is_monotone
    return words


def _shortened(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {name: _shortened(each) for name, each in value.items()}
    return [_shortened(each) for each in value] if isinstance(value, list) else value


def _slos(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The bounds that occur, in milliseconds, the most frequent first; at most four."""
    counts: dict[tuple[str, float | None, float | None], int] = {}
    for run in runs:
        for row in run.rows:
            key = (row.slo, row.ttft_slo_s, row.tpot_slo_s)
            counts[key] = counts.get(key, 0) + 1
    ordered = sorted(counts, key=lambda key: -counts[key])
    return [
        {"name": name, "ttft": _ms(ttft_s), "tpot": _ms(tpot_s), "count": counts[key]}
        for key in ordered[:4]
        for name, ttft_s, tpot_s in (key,)
    ]


def _ms(value_s: float | None) -> float | None:
    return None if value_s is None else short(value_s * 1e3)


def _shown(found: Sequence[Setting]) -> list[Run]:
    """Of every system the first seed of the greatest rate that it bears, and of the least that it
    does not, as far as there is room."""
    best: list[Run] = []
    worse: list[Run] = []
    for system in dict.fromkeys(each.system for each in found):
        mine = [each for each in found if each.system == system]
        good = [each for each in mine if each.pooled.attainment >= _LEVEL] or mine[:1]
        best.append(good[-1].runs[0])
        behind = mine[mine.index(good[-1]) + 1 :]
        worse += [behind[0].runs[0]] if behind else []
    return [*best, *worse][:_MAX_TIMELINES]


def _notes(study: Study) -> dict[str, str]:
    notes = dict(study.notes)
    for run in study.runs:
        for name, text in run.notes.items():
            notes.setdefault(f"{run.system}: {name}", text)
    return notes
