"""A run as a trace that Perfetto and ``chrome://tracing`` open: who worked when, and for whom.

Trace Event Format (Google): an instance is a process with a track for each kind of work, its queue
is a counter, its changes are instants; a request is a track of its own with its phases, and arrows
lead from its encode to its prefill to its decode. Written as it is made. Knows rows and busy times.
"""

import json
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.run import Busy, Row, Run

Event = dict[str, Any]

_REQUESTS = 1
"""Process of the requests; instances follow."""
_WORK = {
    "encode": ("encode", "mixed"),
    "prefill": ("prefill", "mixed"),
    "decode": ("decode", "mixed"),
}
"""Kinds of work in which a stage of a request may have been done."""


def write(path: Path, run: Run, max_requests: int = 20_000) -> int:
    """Write the trace of a run, of its requests the first ``max_requests``; how many events."""
    count = 0
    with path.open("w", encoding="utf-8") as file:
        file.write('{"displayTimeUnit":"ms","traceEvents":[')
        for count, event in enumerate(events(run, max_requests), start=1):
            file.write(("\n" if count == 1 else ",\n") + json.dumps(event, separators=(",", ":")))
        file.write("\n]}\n")
    return count


def events(run: Run, max_requests: int = 20_000) -> Iterator[Event]:
    """Every event; times in microseconds since the start of the run."""
    tracks = _Tracks(run)
    yield from tracks.names()
    for each in run.busy:
        yield {
            "ph": "X", "name": each.what, "cat": "work", **tracks.place(each.instance, each.what),
            "ts": _us(each.start_s), "dur": _us(each.end_s) - _us(each.start_s),
            "args": {"jobs": each.num_jobs, "tokens": each.num_tokens},
        }  # fmt: skip
    for queue in run.queues:
        yield {
            "ph": "C", "name": "queue", "pid": tracks.pids[queue.instance], "tid": 0,
            "ts": _us(queue.at_s), "args": {"waiting": queue.waiting, "running": queue.running},
        }  # fmt: skip
    for change in run.changes:
        yield {
            "ph": "i", "s": "p", "name": f"{change.what} {change.detail}".strip(), "cat": "change",
            "pid": tracks.pids[change.instance], "tid": 0, "ts": _us(change.at_s),
        }  # fmt: skip
    for row in run.rows[:max_requests]:
        yield from _request(row)
        yield from tracks.arrows(row)


def _us(time_s: float) -> int:
    return round(time_s * 1e6)


class _Tracks:
    """Processes and threads, and where in them a request's stages were worked on."""

    def __init__(self, run: Run) -> None:
        told = {each.instance for some in (run.busy, run.queues, run.changes) for each in some}
        self.pids = {name: number + _REQUESTS + 1 for number, name in enumerate(sorted(told))}
        kinds = sorted({each.what for each in run.busy})
        self._tids = {what: number + 1 for number, what in enumerate(kinds)}
        self._work: dict[tuple[str, str], list[Busy]] = {}
        for each in sorted(run.busy, key=lambda one: one.start_s):
            self._work.setdefault((each.instance, each.what), []).append(each)
        self._starts = {key: [one.start_s for one in busy] for key, busy in self._work.items()}

    def place(self, instance: str, what: str) -> dict[str, int]:
        return {"pid": self.pids[instance], "tid": self._tids[what]}

    def names(self) -> Iterator[Event]:
        yield _name("process_name", _REQUESTS, 0, "requests")
        for instance, pid in self.pids.items():
            yield _name("process_name", pid, 0, instance)
        for instance, what in self._work:
            yield _name("thread_name", self.pids[instance], self._tids[what], what)

    def arrows(self, row: Row) -> Iterator[Event]:
        """From stage to stage, as far as a job is found that ran at the time."""
        found = [each for stage, at_s in _moments(row) if (each := self._job(row, stage, at_s))]
        if len(found) < 2:
            return
        for number, (instance, busy, at_s) in enumerate(found):
            kind = "s" if number == 0 else "f" if number == len(found) - 1 else "t"
            ts = min(max(_us(at_s), _us(busy.start_s)), max(_us(busy.start_s), _us(busy.end_s) - 1))
            event = {"ph": kind, "name": "request", "cat": "flow", "id": row.id, "ts": ts}
            yield {**event, **({"bp": "e"} if kind == "f" else {}),
                   **self.place(instance, busy.what)}  # fmt: skip

    def _job(self, row: Row, stage: str, at_s: float) -> tuple[str, Busy, float] | None:
        """The last job of one of the row's instances that began before ``at_s``."""
        best: tuple[str, Busy, float] | None = None
        for instance in row.route:
            for what in _WORK[stage]:
                starts = self._starts.get((instance, what), [])
                index = bisect_right(starts, at_s) - 1
                if index >= 0 and (best is None or starts[index] > best[1].start_s):
                    best = (instance, self._work[instance, what][index], at_s)
        return best


def _moments(row: Row) -> Iterator[tuple[str, float]]:
    """A moment within each stage: encode as it ends, prefill with the first token, decode with the
    second."""
    if not row.token_times_s:
        return
    first_s = row.token_times_s[0]
    behind_s = row.phases.get("prefill", 0.0) + row.phases.get("encode_transfer", 0.0)
    if row.phases.get("encode"):
        yield "encode", max(row.arrival_s, first_s - behind_s - 1e-6)
    yield "prefill", first_s - 1e-6
    if len(row.token_times_s) > 1:
        yield "decode", row.token_times_s[1] - 1e-6


def _request(row: Row) -> Iterator[Event]:
    """Nested asynchronous slices: the request, and inside it its phases in order."""
    about = {"cat": "request", "id": row.id, "pid": _REQUESTS, "tid": 0}
    arguments = {
        "slo": row.slo, "status": row.status, "images": row.num_images,
        "prompt": row.prompt_tokens, "cached": row.cached_tokens,
        "output": len(row.token_times_s), "route": list(row.route),
    }  # fmt: skip
    yield {"ph": "b", "name": row.id, "ts": _us(row.arrival_s), "args": arguments, **about}
    for name, from_s, to_s in _phases(row):
        yield {"ph": "b", "name": name, "ts": _us(from_s), **about}
        yield {"ph": "e", "name": name, "ts": _us(to_s), **about}
    if row.token_times_s:
        yield {"ph": "n", "name": "first token", "ts": _us(row.token_times_s[0]), **about}
    yield {"ph": "e", "name": row.id, "ts": max(_us(row.end_s), _us(row.arrival_s)), **about}


def _phases(row: Row) -> Iterator[tuple[str, float, float]]:
    """Lengths are told, places are not: phases follow each other and end with the first token."""
    if not row.token_times_s:
        return
    first_s, names = row.token_times_s[0], ("queue", "encode", "encode_transfer", "prefill")
    total_s = sum(row.phases.get(name, 0.0) for name in names)
    scale = min(1.0, (first_s - row.arrival_s) / total_s) if total_s > 0 else 0.0
    at_s = first_s - total_s * scale
    for name in names:
        if length_s := row.phases.get(name, 0.0) * scale:
            yield name, at_s, at_s + length_s
            at_s += length_s
    if row.token_times_s[-1] > first_s:
        yield "decode", first_s, row.token_times_s[-1]


def _name(kind: str, pid: int, tid: int, name: str) -> Event:
    return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "ts": 0, "args": {"name": name}}
