"""Requests that wait for an answer: turns quote what was said, loops have so many clients."""

import math
from collections import Counter, defaultdict
from itertools import pairwise

import pytest

from bench.sources.registry import workload
from bench.workload import Text
from tests.bench.sources.traces import drawn
from triptych.core.errors import ConfigError


def sessions(found):
    by_name = defaultdict(list)
    for one in found:
        by_name[one.session].append(one)
    return by_name


def test_every_turn_quotes_all_earlier_ones_and_their_answers():
    found = drawn(workload("synthetic:multi_turn,prefix=40"), 10.0, 400.0, 1)
    longest = 0
    for turns in sessions(found).values():
        assert turns[0].after_s is None
        assert turns[0].parts[0] == Text(0, 40)
        for before, one in pairwise(turns):
            quoted = (*before.parts, Text(before.answer, before.num_output))
            assert one.parts[: len(quoted)] == quoted
            assert len(one.parts) > len(quoted)
            assert one.after_s >= 0
            assert one.at_s == pytest.approx(before.at_s + one.after_s)
        longest = max(longest, len(turns))
    assert longest > 6
    assert len({one.answer for one in found}) == len(found)


def test_turns_and_thinking_are_as_asked():
    """Turns are geometric with mean 4, think times exponential with mean 2 s; of a long stretch
    all turns together come at the rate."""
    load = workload("synthetic:multi_turn,turns=~4,think_s=2")
    found = drawn(load, 10.0, 1000.0, 1)
    lengths = [len(turns) for turns in sessions(found).values()]
    error = 4 * math.sqrt(12 / len(lengths))
    assert abs(sum(lengths) / len(lengths) - 4) < error
    assert abs(Counter(lengths)[1] / len(lengths) - 0.25) < 4 * math.sqrt(0.19 / len(lengths))
    gaps = [one.after_s for one in found if one.after_s is not None]
    assert abs(sum(gaps) / len(gaps) - 2) < 4 * 2 / math.sqrt(len(gaps))
    assert abs(len(found) / 1000 - 10) < 4 * math.sqrt(10 * (12 + 16) / 4 / 1000)


def test_pictures_are_shared_between_sessions():
    found = drawn(workload("synthetic:multi_turn,repeat=0.5,later_images=0"), 20.0, 200.0, 1)
    firsts = [turns[0].images for turns in sessions(found).values()]
    images = [image for each in firsts for image in each]
    assert len(images) == len(firsts)
    assert abs(len(set(images)) / len(images) - 0.5) < 4 * 0.5 / math.sqrt(len(images))


def test_what_cannot_come_in_time_is_left_out():
    found = drawn(workload("synthetic:multi_turn,think_s=1000"), 10.0, 20.0, 1)
    assert all(one.at_s < 20 for one in found)
    assert sum(one.after_s is not None for one in found) < 0.1 * len(found)


@pytest.mark.parametrize(
    ("options", "total"), [("", 48), ("clients=2", 24), ("clients=32", 128), ("requests=5", 5)]
)
def test_a_loop_asks_as_often_as_it_should(options, total):
    load = workload(f"synthetic:closed_loop,{options}" if options else "synthetic:closed_loop")
    assert len(drawn(load, None, 60.0, 1)) == total


def test_clients_of_a_loop_take_turns():
    found = drawn(workload("synthetic:closed_loop,clients=3,requests=8,think_s=2"), None, 60.0, 1)
    assert [one.session for one in found[:4]] == ["client-0", "client-1", "client-2", "client-0"]
    assert [one.after_s for one in found] == [None] * 3 + [2.0] * 5
    assert [one.at_s for one in found] == [0.0] * 3 + [2.0] * 3 + [4.0] * 2
    cut = drawn(workload("synthetic:closed_loop,clients=3,requests=8,think_s=2"), None, 3.0, 1)
    assert cut == found[:6]


def test_a_loop_has_no_rate():
    with pytest.raises(ConfigError, match="^rate: "):
        next(workload("synthetic:closed_loop").arrivals(2.0, 10.0, 1))
