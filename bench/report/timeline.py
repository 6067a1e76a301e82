"""What instances did over time, small enough for a page: bins of the whole, close-ups to the job.

A simulated hour of a hundred instances has millions of steps; a page shows a few hundred columns.
So the whole is told as the share of each bin that each kind of work took, and a few windows are
told exactly. Knows the busy times, queues and changes of a run; no page.
"""

import base64
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import msgspec

from bench.run import Busy, Change, Queue, Run

_MAX_ROWS = 96
_MAX_CELLS = 240_000
_MAX_BINS = 1500
_EXACT = 12_000
"""Up to so many busy times are told one by one."""
_CLOSE = 3_000
_QUEUE_BINS = 360
_MAX_CHANGES = 400
_TICK_S = 1e-4
"""Unit of exact times in the page."""
_LEVELS = 255
_PATH = ("encode", "prefill", "decode")


class _Rows(msgspec.Struct, frozen=True):
    names: tuple[str, ...]
    of: dict[str, int]
    """Instance to its row."""
    sizes: tuple[int, ...]
    """Instances in a row."""


def timeline(run: Run) -> dict[str, Any]:
    """Everything over time. Empty if the run tells nothing of its instances."""
    if not (run.busy or run.queues or run.changes):
        return {}
    end_s = max([run.duration_s, *(each.end_s for each in run.busy)])
    rows = _rows(run)
    kinds = sorted({each.what for each in run.busy}, key=_in_order)
    return {
        "system": run.system,
        "rate": run.rate,
        "seed": run.seed,
        "end": round(end_s, 3),
        "warmup": run.warmup_s,
        "last": run.duration_s,
        "kinds": kinds,
        "rows": [
            {"name": name, "size": size} for name, size in zip(rows.names, rows.sizes, strict=True)
        ],
        "bins": _bins(run, rows, kinds, end_s),
        "exact": _exact(run, rows, kinds),
        "queues": _queues(run, end_s),
        "changes": [
            {"row": rows.of[change.instance], "name": change.instance,
             "at": round(change.at_s, 3), "what": change.what, "detail": change.detail}
            for change in run.changes[:_MAX_CHANGES]
        ],
        "numChanges": len(run.changes),
    }  # fmt: skip


def _rows(run: Run) -> _Rows:
    """A row an instance; neighbours share one where there are too many."""
    told: tuple[Sequence[Busy | Queue | Change], ...] = (run.busy, run.queues, run.changes)
    instances = sorted({each.instance for some in told for each in some}, key=_in_order)
    width = -(-len(instances) // _MAX_ROWS)
    groups = [instances[first : first + width] for first in range(0, len(instances), width)]
    return _Rows(
        tuple(group[0] if width == 1 else f"{group[0]} .. {group[-1]}" for group in groups),
        {name: number for number, group in enumerate(groups) for name in group},
        tuple(map(len, groups)),
    )


def _in_order(name: str) -> tuple[int, list[tuple[int, str]]]:
    """In the order of the path, and ``decode-10`` behind ``decode-9``."""
    stage = next((number for number, word in enumerate(_PATH) if word in name), len(_PATH))
    words = re.split(r"(\d+)", name)
    return stage, [(int(word), "") if word.isdigit() else (-1, word) for word in words]


def _bins(run: Run, rows: _Rows, kinds: Sequence[str], end_s: float) -> dict[str, Any]:
    """Per row and kind a byte a bin: the share of it in 255ths, as base64."""
    cells = max(1, len(rows.names) * len(kinds))
    count = max(60, min(_MAX_BINS, _MAX_CELLS // cells))
    width_s = end_s / count
    busy_s: defaultdict[tuple[int, str], list[float]] = defaultdict(lambda: [0.0] * count)
    for each in run.busy:
        _spread(busy_s[rows.of[each.instance], each.what], each, width_s)
    return {
        "count": count,
        "data": {
            f"{row},{kinds.index(what)}": base64.b64encode(
                bytes(
                    min(_LEVELS, round(_LEVELS * value / width_s / rows.sizes[row]))
                    for value in values
                )
            ).decode()
            for (row, what), values in sorted(busy_s.items())
        },
    }


def _spread(bins: list[float], each: Busy, width_s: float) -> None:
    first = max(0, int(each.start_s / width_s))
    last = min(len(bins) - 1, int(each.end_s / width_s))
    for number in range(first, last + 1):
        begin_s = max(each.start_s, number * width_s)
        bins[number] += max(0.0, min(each.end_s, (number + 1) * width_s) - begin_s)


def _exact(run: Run, rows: _Rows, kinds: Sequence[str]) -> list[dict[str, Any]]:
    """The whole if it is short; else the moments behind the warm-up and around the middle."""
    busy = sorted(run.busy, key=lambda each: each.start_s)
    if not busy or max(rows.sizes) > 1:
        return []
    if len(busy) <= _EXACT:
        return [_window(busy, rows, kinds)]
    found = []
    for from_s in (run.warmup_s, (run.warmup_s + run.duration_s) / 2):
        first = next((i for i, each in enumerate(busy) if each.start_s >= from_s), 0)
        found.append(_window(busy[first : first + _CLOSE], rows, kinds))
    return found


def _window(busy: Sequence[Busy], rows: _Rows, kinds: Sequence[str]) -> dict[str, Any]:
    """Per row a flat list ``kind, start, length, jobs, ...``; starts are distances from the start
    before, both in ticks of 0.1 ms."""
    lists: dict[int, list[int]] = {}
    before: dict[int, int] = {}
    for each in busy:
        row = rows.of[each.instance]
        start = round(each.start_s / _TICK_S)
        length = max(1, round((each.end_s - each.start_s) / _TICK_S))
        since = start - before.get(row, 0)
        lists.setdefault(row, []).extend((kinds.index(each.what), since, length, each.num_jobs))
        before[row] = start
    return {
        "from": round(busy[0].start_s, 4),
        "to": round(max(each.end_s for each in busy), 4) if len(busy) < _EXACT
        else round(busy[-1].start_s, 4),
        "rows": {str(row): flat for row, flat in sorted(lists.items())},
    }  # fmt: skip


def _queues(run: Run, end_s: float) -> list[dict[str, Any]]:
    """Waiting and running by group of instances: what was told last before the end of each bin."""
    if not run.queues:
        return []
    width_s = end_s / _QUEUE_BINS
    groups: dict[str, dict[str, list[tuple[float, int, int]]]] = {}
    for each in sorted(run.queues, key=lambda queue: queue.at_s):
        group = re.sub(r"[-_]?\d+$", "", each.instance)
        mine = groups.setdefault(group, {}).setdefault(each.instance, [])
        mine.append((each.at_s, each.waiting, each.running))
    found = []
    for group, members in groups.items():
        waiting, running = [0] * _QUEUE_BINS, [0] * _QUEUE_BINS
        for told in members.values():
            index, now = 0, (0.0, 0, 0)
            for number in range(_QUEUE_BINS):
                while index < len(told) and told[index][0] < (number + 1) * width_s:
                    now = told[index]
                    index += 1
                waiting[number] += now[1]
                running[number] += now[2]
        found.append({"name": group, "waiting": waiting, "running": running})
    return found
