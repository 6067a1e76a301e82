"""Mooncake's and Azure's traces: drawn files for the rules, published ones for the numbers."""

import math
from collections import Counter

import msgspec
import pytest

from bench.sources.azure import Azure
from bench.sources.azure import Settings as AzureSettings
from bench.sources.azure_lmm import NUM_REQUESTS, AzureLmm
from bench.sources.azure_lmm import Settings as LmmSettings
from bench.sources.describe import describe
from bench.sources.mooncake import Mooncake
from bench.sources.mooncake import Settings as MooncakeSettings
from bench.workload import Text
from tests.bench.sources.traces import TRACES, drawn
from triptych.core.errors import ConfigError

MOONCAKE = TRACES / "mooncake_fast25"
AZURE = TRACES / "azure_llm_2023"
LMM = TRACES / "azure_lmm_2025"


def published(folder):
    return pytest.mark.skipif(not folder.is_dir(), reason=f"no trace at {folder}")


LINES = [
    {"timestamp": 0, "input_length": 1030, "output_length": 9, "hash_ids": [0, 1, 2]},
    {"timestamp": 4000, "input_length": 512, "output_length": 0, "hash_ids": [0]},
    {"timestamp": 2000, "input_length": 700, "output_length": 5, "hash_ids": [0, 3]},
]


@pytest.fixture
def conversations(tmp_path):
    (tmp_path / "conversation_trace.jsonl").write_bytes(b"\n".join(map(msgspec.json.encode, LINES)))
    return tmp_path


def test_blocks_of_a_conversation_become_texts(conversations):
    found = drawn(Mooncake(MooncakeSettings(f"{conversations}")), None, 5.0, 1)
    assert [one.at_s for one in found] == [0.0, 2.0, 4.0]
    assert found[0].parts == (Text(0, 512), Text(1, 512), Text(2, 6))
    assert found[1].parts == (Text(0, 512), Text(3, 188))
    assert found[2].parts == (Text(0, 512),)
    assert [one.num_output for one in found] == [9, 5, 1]


def test_a_second_lap_has_texts_of_its_own(conversations):
    found = drawn(Mooncake(MooncakeSettings(f"{conversations}")), 1.0, 6.0, 1)
    first, second = (
        {part.seed for one in lap for part in one.parts} for lap in (found[:3], found[3:])
    )
    assert len(first) == len(second) == 4
    assert not first & second


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"timestamp": 0}, "line 1: .*input_length"),
        ({**LINES[0], "hash_ids": [1]}, "line 1: hash_ids"),
        ({**LINES[0], "input_length": 0, "hash_ids": []}, "line 1: .*input_length"),
        ({**LINES[0], "hash_ids": [1, 2, -3]}, "line 1: .*hash_ids"),
    ],
)
def test_a_spoilt_conversation_is_refused(tmp_path, line, words):
    (tmp_path / "conversation_trace.jsonl").write_bytes(msgspec.json.encode(line))
    with pytest.raises(ConfigError, match=f"mooncake: {words}"):
        Mooncake(MooncakeSettings(f"{tmp_path}"))


@published(MOONCAKE)
def test_conversations_of_mooncake_are_all_there():
    load = Mooncake(MooncakeSettings(f"{MOONCAKE}"))
    found = describe(load, None, 3537.0, 1)
    assert found.num_requests == 12_031
    assert found.prompt.mean * 12_031 == sum(row.input_length for row in load.rows)
    blocks = [part.seed for one in load.arrivals(None, 3537.0, 1) for part in one.parts]
    assert (len(blocks), len(set(blocks))) == (288_500, 182_790), "36.6 % of blocks came before"
    assert round(100 * found.repeated_prompt, 1) == 37.4, "in tokens: last blocks are short"


CSV = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:04.0319600,3180,0
2023-11-16 18:17:05.9799600,110,27
"""


def test_rows_of_azure_become_requests(tmp_path):
    file = tmp_path / "trace.csv"
    file.write_text(CSV)
    found = drawn(Azure(AzureSettings(f"{file}")), None, 2.5, 1)
    assert [one.at_s for one in found] == pytest.approx([0.0, 0.052, 2.0], abs=1e-5)
    assert [(one.num_prompt, one.num_output) for one in found] == [(4808, 10), (3180, 1), (110, 27)]
    assert len({one.parts[0].seed for one in found}) == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "columns"),
        ("time,in,out\n", "columns"),
        (CSV.splitlines()[0], "empty"),
        (CSV + "yesterday,1,2\n", "line 5"),
        (CSV + "2023-11-16 18:17:05,many,2\n", "line 5"),
        (CSV + "2023-11-16 18:17:05\n", "line 5"),
    ],
)
def test_a_spoilt_trace_of_azure_is_refused(tmp_path, text, words):
    file = tmp_path / "trace.csv"
    file.write_text(text)
    with pytest.raises(ConfigError, match=f"azure: .*{words}"):
        Azure(AzureSettings(f"{file}"))


@published(AZURE)
def test_azures_trace_is_all_there():
    load = Azure(AzureSettings(f"{AZURE}"))
    found = drawn(load, None, 3436.0, 1)
    assert len(found) == 8819
    assert found[-1].at_s == pytest.approx(3435.948, abs=0.01)


LINE = {"1": 100, "99": 1000}
HOUR = {"image_mean_min": 30.0, "image_mean_max": 90.0, "text_mean_min": 0.0, "text_mean_max": 0.0}
QUIET = {**HOUR, "image_mean_min": 0.0, "image_mean_max": 0.0, "text_mean_max": 120.0}
PLOTS = {
    "image_req_input_tokens": {"1": 2000, "99": 9000},
    "text_req_input_tokens": LINE,
    "image_req_output_tokens": LINE,
    "text_req_output_tokens": LINE,
    "numimages_cdf_if_field_is_n_squared": {"1": 60.0, "2": 60.0, "3": 100.0},
    "per_minute_requests_hourly_envelope": {
        "hour_offset_from_2024-10-16T00:00Z": {"9": QUIET, "-1": HOUR}
    },
}


def lmm(tmp_path, plots=PLOTS, **options):
    file = tmp_path / "plots.json"
    file.write_bytes(msgspec.json.encode(plots))
    return AzureLmm(LmmSettings(f"{file}", **options))


def test_plots_become_requests_of_two_kinds_with_loads_of_their_own(tmp_path):
    load = lmm(tmp_path, tokens="600")
    found = drawn(load, 2.0, 7200.0, 1)
    assert abs(len(found) - 14_400) < 4 * math.sqrt(14_400)
    assert {bool(one.images) for one in found if one.at_s < 3600} == {True}
    assert {bool(one.images) for one in found if one.at_s >= 3600} == {False}
    pictured = [one for one in found if one.images]
    assert {len(one.images) for one in pictured} == {1, 3}
    share = sum(len(one.images) == 3 for one in pictured) / len(pictured)
    assert abs(share - 0.4) < 4 * math.sqrt(0.24 / len(pictured))
    assert all(2000 <= one.num_prompt <= 9000 for one in pictured), "contexts count their pictures"


def test_the_hours_have_a_million_requests_in_all(tmp_path):
    kinds = lmm(tmp_path).kinds.values()
    hours = [low + high for kind in kinds for low, high in kind.bands]
    assert sum(hours) / 2 * 3600 == pytest.approx(NUM_REQUESTS)


def test_minutes_of_an_hour_differ(tmp_path):
    found = drawn(lmm(tmp_path), 5.0, 3600.0, 1)
    minutes = Counter(int(one.at_s // 60) for one in found)
    counts = [minutes[minute] for minute in range(60)]
    mean = sum(counts) / 60
    assert sum((count - mean) ** 2 for count in counts) / 60 > 15 * mean, "not merely Poisson"
    assert max(counts) < 4 * min(counts), "30 to 90 a minute"


@pytest.mark.parametrize(
    "spoil",
    [
        {"text_req_input_tokens": {"1": 5}},
        {"text_req_input_tokens": {"1": 5, "x": 6}},
        {"numimages_cdf_if_field_is_n_squared": {}},
        {"per_minute_requests_hourly_envelope": {"hour_offset_from_2024-10-16T00:00Z": {}}},
    ],
)
def test_spoilt_plots_are_refused(tmp_path, spoil):
    with pytest.raises(ConfigError, match="azure_lmm: "):
        lmm(tmp_path, PLOTS | spoil)


@published(LMM)
def test_a_draw_of_azures_plots_has_their_medians():
    load = AzureLmm(LmmSettings(f"{LMM}"))
    found = drawn(load, 8.0, 3000.0, 1)
    for has_images, context, output in ((True, 1413, 79), (False, 784, 145)):
        those = [one for one in found if bool(one.images) is has_images]
        error = 4 * 0.5 / math.sqrt(len(those))
        assert abs(sum(one.num_prompt <= context * 1.01 for one in those) / len(those) - 0.5) < (
            error + 0.01
        )
        assert abs(sum(one.num_output <= output for one in those) / len(those) - 0.5) < error + 0.01
    counts = [len(one.images) for one in found if one.images]
    error = 4 * math.sqrt(0.66 * 0.34 / len(counts))
    assert abs(counts.count(1) / len(counts) - 0.658 / 0.997) < error
    assert max(counts) <= 23
