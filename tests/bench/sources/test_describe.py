"""Numbers of a workload that were counted by hand."""

import math

import pytest

from bench.sources.describe import Moments, describe, moments, summarise, table
from bench.sources.registry import workload
from bench.workload import Arrival, Image, Text

ONE, TWO = Image(1, 56, 28), Image(2, 280, 280)
REQUESTS = (
    Arrival(0.0, (ONE, Text(1, 10)), 5, answer=8, session="a"),
    Arrival(1.0, (Text(2, 7),), 1),
    Arrival(3.0, (ONE, Text(1, 10), Text(8, 5), TWO, Text(3, 4)), 2, session="a", after_s=1.0),
    Arrival(4.0, (TWO, ONE, Text(1, 10)), 4),
)


def test_moments_are_those_of_the_numbers():
    found = moments(range(1, 101))
    assert found == Moments(50.5, 3383.5, 50, 90, 95, 99, 100)
    assert found.deviation == pytest.approx(math.sqrt(833.25))
    assert moments([3.0]) == Moments(3.0, 9.0, 3.0, 3.0, 3.0, 3.0, 3.0)
    assert moments([]) == Moments()


def test_a_workload_is_counted():
    found = summarise("four", REQUESTS, 8.0)
    assert (found.workload, found.num_requests, found.rate) == ("four", 4, 0.5)
    assert found.with_images == 0.75
    assert found.images == moments([1, 0, 2, 2])
    assert found.image_tokens == moments([2, 2, 100, 100, 2])
    assert found.visual == moments([2, 0, 102, 102])
    assert found.image_squares == (4 + 0 + 10_004 + 10_004) / 4
    assert found.text == moments([10, 7, 19, 10])
    assert found.prompt == moments([12, 7, 121, 112])
    assert found.output == moments([5, 1, 2, 4])
    assert found.repeated_images == 3 / 5
    assert found.repeated_prompt == 12 / 252, "a beginning counts, the same in other places not"
    gaps = moments([1.0, 3.0])
    assert found.gap_cv == gaps.deviation / gaps.mean


def test_nothing_has_no_statistics():
    found = summarise("none", (), 0.0)
    assert (found.num_requests, found.rate, found.gap_cv, found.with_images) == (0, 0, 0, 0)
    assert found.prompt == Moments()


def test_second_moments_are_those_that_queues_need():
    """A uniform amount from 4 to 8 has the mean 6 and the mean square 38."""
    found = describe(workload("synthetic:image_heavy"), 20.0, 500.0, 1)
    error = 4 / math.sqrt(found.num_requests)
    assert abs(found.images.mean - 6) < math.sqrt(2) * error
    assert abs(found.images.second - 38) < 17 * error
    assert found.image_squares == pytest.approx(found.images.mean * 1196**2)
    assert found.visual.second == pytest.approx(found.images.second * 1196**2)


def test_the_table_has_a_line_for_each():
    lines = table([summarise("four", REQUESTS, 8.0), summarise("none", (), 1.0)]).splitlines()
    assert len(lines) == 4
    assert lines[2].startswith("| four | 0.50 | 0.50 | 75.0 | 1.25 | 41 | 12 (10, 19) |")
    assert {line.count("|") for line in lines} == {12}
