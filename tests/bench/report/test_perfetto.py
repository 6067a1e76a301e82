"""The trace keeps to the Trace Event Format, and its arrows lead where the work was."""

import json
from collections import Counter

import pytest

from bench.report import perfetto
from bench.run import Busy, Row, Run
from tests.bench.drawn_runs import drawn_run

REQUIRED = {
    "X": {"name", "cat", "ts", "dur", "pid", "tid"},
    "M": {"name", "pid", "tid", "args"},
    "C": {"name", "ts", "pid", "args"},
    "i": {"name", "s", "ts", "pid"},
    "b": {"name", "cat", "id", "ts", "pid"},
    "n": {"name", "cat", "id", "ts", "pid"},
    "e": {"name", "cat", "id", "ts", "pid"},
    "s": {"name", "cat", "id", "ts", "pid", "tid"},
    "t": {"name", "cat", "id", "ts", "pid", "tid"},
    "f": {"name", "cat", "id", "ts", "pid", "tid", "bp"},
}
"""Fields of each phase, by the format's description."""


@pytest.fixture(scope="module")
def drawn():
    return drawn_run(duration_s=20.0, warmup_s=2.0)


@pytest.fixture(scope="module")
def trace(drawn, tmp_path_factory):
    path = tmp_path_factory.mktemp("trace") / "trace.json"
    count = perfetto.write(path, drawn)
    events = json.loads(path.read_text())["traceEvents"]
    assert count == len(events)
    return events


def test_every_event_has_the_fields_of_its_phase(trace):
    for event in trace:
        assert REQUIRED[event["ph"]] <= event.keys(), event
        assert event["ts"] >= 0 and isinstance(event["ts"], int)
        assert event.get("dur", 0) >= 0


def test_every_process_and_thread_is_named_once(trace):
    named = Counter((e["name"], e["pid"], e["tid"]) for e in trace if e["ph"] == "M")
    assert set(named.values()) == {1}
    used = {(e["pid"], e["tid"]) for e in trace if e["ph"] == "X"}
    assert used <= {(pid, tid) for kind, pid, tid in named if kind == "thread_name"}


def test_nested_slices_close_and_stay_inside_their_request(trace):
    opened: dict[str, list] = {}
    for event in trace:
        if event["ph"] == "b":
            opened.setdefault(event["id"], []).append(event)
        elif event["ph"] == "e":
            begun = opened[event["id"]].pop()
            assert begun["name"] == event["name"] and begun["ts"] <= event["ts"]
    assert not any(opened.values())


def test_arrows_are_whole_and_bind_to_slices(trace):
    slices: dict[tuple, list] = {}
    for event in trace:
        if event["ph"] == "X":
            slices.setdefault((event["pid"], event["tid"]), []).append(event)
    flows: dict[str, list] = {}
    for event in trace:
        if event["ph"] in "stf":
            flows.setdefault(event["id"], []).append(event)
            assert any(
                one["ts"] <= event["ts"] <= one["ts"] + one["dur"]
                for one in slices[event["pid"], event["tid"]]
            ), event
    assert flows
    for steps in flows.values():
        assert [e["ph"] for e in steps] in (["s", "f"], ["s", "t", "f"])


def test_an_arrow_goes_from_encode_to_prefill_to_decode():
    busy = (Busy("e", "encode", 0.1, 0.3), Busy("p", "prefill", 0.4, 0.6),
            Busy("d", "decode", 0.65, 0.9), Busy("d", "decode", 0.95, 1.2))  # fmt: skip
    phases = {"encode": 0.2, "encode_transfer": 0.05, "prefill": 0.2}
    row = Row("r", 0.0, "batch", None, None, 1, 4, 9, "ok", 1.2, token_times_s=(0.6, 0.9, 1.2),
              route=("e", "p", "d"), phases=phases)  # fmt: skip
    events = list(perfetto.events(Run("S", "w", 1.0, 0, 3.0, 2.0, (row,), busy=busy)))
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert [names[e["pid"]] for e in events if e["ph"] in "stf"] == ["e", "p", "d"]


def test_a_long_run_is_cut(drawn):
    few = list(perfetto.events(drawn, max_requests=3))
    assert len({e["id"] for e in few if e["ph"] == "b"}) == 3
