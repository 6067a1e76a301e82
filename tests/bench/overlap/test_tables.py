"""From samples to shares and tables: figures by hand."""

import json
import random

import pytest

from bench import plots
from bench.overlap import command
from bench.overlap.measure import PICTURE_CASES, TOKEN_CASES, Row, Sample, with_pictures, with_words
from bench.overlap.tables import hidden, panels, picture_table, token_table

FIGURES = {"after prefill": 0.050, "by chunk": 0.030, "by layer": 0.010, "by chunk and layer": 0.0}


def rows(size: int = 1024) -> list[Row]:
    """Exposed times as in FIGURES, twice each with the first token at 1 s and steps of 2 ms."""
    return [
        Row(case, size, (Sample(1.0, 1.002 + exposed_s, 0.002, size),) * 2)
        for case, exposed_s in FIGURES.items()
    ]


def test_shares_are_relative_to_the_transfer_alone():
    shares = hidden([*rows(), *rows(4096)])
    assert shares["after prefill", 1024] == 0.0
    assert shares["by chunk", 4096] == pytest.approx(0.4)
    assert shares["by layer", 1024] == pytest.approx(0.8)
    assert shares["by chunk and layer", 1024] == pytest.approx(1.0)


def test_tables_show_medians_and_spread():
    told = token_table(rows(), 6144).splitlines()
    assert told[2] == (
        "| 1,024 | 6.3 | after prefill | 1000.0 (1000.0-1000.0) | 50.0 (50.0-50.0) | 0% |"
    )
    assert told[4].endswith("| 10.0 (10.0-10.0) | 80% |")
    assert picture_table(rows(4)).splitlines()[2].startswith("| 4 | after prefill | 1000.0 ")


def test_requests_are_new_in_every_repetition_and_as_large_as_asked():
    make = with_pictures(56)
    first, second = (make(3, random.Random(number)) for number in (1, 2))
    assert [part["type"] for part in first[0]["content"]] == ["image_url"] * 3 + ["text"]
    assert json.dumps(first) != json.dumps(second)
    assert len(with_words(1.5)(300, random.Random(1))[0]["content"].split()) == 200


def test_everything_is_drawn(tmp_path):
    found = panels(rows(4), [*rows(), *rows(4096)])
    assert len(found) == 5
    plots.draw_lines(found, tmp_path / "o.png", "overlap")
    assert (tmp_path / "o.png").read_bytes().startswith(b"\x89PNG")


def test_the_first_case_of_tokens_overlaps_nothing():
    assert next(iter(TOKEN_CASES)) == "after prefill"
    assert "transfer.layerwise=false" in TOKEN_CASES["after prefill"]
    assert PICTURE_CASES["both"] == ()


def test_without_servers_the_computed_part_is_printed(tmp_path, capsys):
    assert command.main(["--computed", "--out", str(tmp_path)]) == 0
    assert "InfiniBand NDR (50 GB/s) | 16,384" in capsys.readouterr().out
    assert len(list(tmp_path.iterdir())) == 2
