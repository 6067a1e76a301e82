"""What is written is read again, and nothing else is."""

import msgspec
import pytest

from bench.sources.recorded import read, write
from bench.sources.registry import workload
from bench.workload import Arrival, Image, Text
from tests.bench.sources.traces import drawn
from triptych.core.errors import ConfigError

REQUESTS = (
    Arrival(5.0, (Image(7, 56, 84), Text(1, 20)), 9, answer=4, session="a"),
    Arrival(6.0, (Text(2, 3),), 1, slo="strict", priority=3),
    Arrival(6.0, (Text(1, 20), Text(4, 9), Text(5, 2)), 2, session="a", after_s=0.5),
    Arrival(9.0, (Text(6, 300),), 50),
)


@pytest.fixture
def recording(tmp_path):
    path = tmp_path / "new" / "recording.jsonl"
    assert write(path, REQUESTS) == 4
    return path


def test_requests_are_written_in_order_and_read_again(tmp_path):
    path = tmp_path / "recording.jsonl"
    assert write(path, (REQUESTS[3], *REQUESTS[:3])) == 4
    assert read(path) == REQUESTS
    assert [file.name for file in tmp_path.iterdir()] == ["recording.jsonl"]


def test_any_workload_can_be_recorded_and_replayed(tmp_path):
    path = tmp_path / "recording.jsonl"
    found = drawn(workload("synthetic:multi_turn"), 5.0, 60.0, 1)
    write(path, found)
    again = drawn(workload(f"ledger:{path}"), None, 60.0, 9)
    first = found[0].at_s
    assert [one.at_s for one in again] == pytest.approx([one.at_s - first for one in found])
    assert [msgspec.structs.replace(one, at_s=0.0) for one in again] == [
        msgspec.structs.replace(one, at_s=0.0) for one in found
    ]


def test_a_recording_starts_at_once_ends_once_and_can_be_cut(recording):
    assert [one.at_s for one in drawn(workload(f"ledger:{recording}"), None, 99.0, 1)] == [
        0, 1, 1, 4
    ]  # fmt: skip
    assert len(drawn(workload(f"ledger:{recording}"), None, 3.0, 1)) == 3
    late = drawn(workload(f"ledger:{recording},start_s=0.5"), None, 99.0, 1)
    assert [one.at_s for one in late] == [0.5, 0.5, 3.5]


def test_a_recording_at_another_rate_is_stretched_and_thinking_is_not(recording):
    found = drawn(workload(f"ledger:{recording}"), 0.3, 10.0, 1)
    assert len(found) == 3
    assert [one.at_s for one in found] == pytest.approx([0.0, 2.5, 2.5])
    assert found[2].after_s == 0.5


def test_a_recording_offers_no_more_than_it_has(recording):
    with pytest.raises(ConfigError, match="^rate: the recording has 4 requests"):
        next(workload(f"ledger:{recording}").arrivals(1.0, 10.0, 1))


GOOD = msgspec.to_builtins(REQUESTS[0])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"at_s": -1.0}, "at_s"),
        ({"num_output": 0}, "num_output"),
        ({"parts": []}, "num_output"),
        ({"slo": "soon"}, "slo: 'soon' is none of interactive"),
        ({"parts": [{"type": "text", "seed": 1, "num_tokens": 0}]}, "num_output"),
        ({"parts": [*GOOD["parts"], {"type": "text", "seed": 1, "num_tokens": 0}]}, "parts"),
        ({"parts": [{"type": "sound", "seed": 1}]}, "sound"),
        ({"parts": [{"type": "image", "content": 1, "width": 28}]}, "height"),
        ({"after_s": -1.0}, "after_s"),
        ({"after_s": 1.0, "session": ""}, "after_s"),
        ({"num_output": "nine"}, "num_output"),
    ],
)
def test_a_spoilt_line_is_refused(tmp_path, change, words):
    path = tmp_path / "recording.jsonl"
    lines = [{**GOOD, "at_s": 0.0}, GOOD | change]
    path.write_bytes(b"\n".join(map(msgspec.json.encode, lines)))
    with pytest.raises(ConfigError, match=f"ledger: line 2: .*{words}"):
        read(path)


@pytest.mark.parametrize("text", [b"", b"{"])
def test_a_file_that_is_no_recording_is_refused(tmp_path, text):
    path = tmp_path / "recording.jsonl"
    path.write_bytes(text)
    with pytest.raises(ConfigError, match="ledger: "):
        read(path)
    with pytest.raises(ConfigError, match="ledger: "):
        read(tmp_path / "nowhere.jsonl")
