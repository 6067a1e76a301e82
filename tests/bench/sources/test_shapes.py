"""Counts and lengths are drawn as their distributions say, and hang together as asked."""

import math
import random

import pytest

from bench.sources.pictures import Pictures
from bench.sources.shapes import (
    Geometric,
    Pmf,
    Quantiles,
    Requests,
    Shape,
    amount,
    quantiles,
    steps,
)
from bench.workload import Image, Text
from triptych.core.errors import ConfigError

RANKS = [(index + 0.5) / 100_000 for index in range(100_000)]


def mean_of(draw):
    return sum(map(draw.at, RANKS)) / len(RANKS)


@pytest.mark.parametrize(
    "draw",
    [
        Pmf({3: 1.0, 1: 2.0, 9: 1.0, 4: 0.0}),
        Geometric(5.0),
        Quantiles([(10, 0), (50, 100), (90, 1000)]),
        quantiles("0:1 100:10001"),
        amount("0.3", "images"),
        amount("4-8", "images"),
        amount("7", "images"),
        amount("~2.5", "turns"),
    ],
)
def test_the_mean_is_that_of_the_draws(draw):
    assert mean_of(draw) == pytest.approx(draw.mean, rel=1e-3)
    assert draw.at(0.0) <= draw.at(0.5) <= draw.at(1 - 1e-12)


def test_values_have_their_probabilities():
    draw = Pmf({3: 1.0, 1: 2.0, 9: 1.0, 4: 0.0})
    assert [draw.at(rank) for rank in (0.0, 0.499, 0.5, 0.749, 0.75, 0.9999)] == [1, 1, 3, 3, 9, 9]


def test_quantiles_are_joined_by_lines_and_flat_outside():
    draw = quantiles("10:0 50:100 90:1000")
    ranks = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99)
    assert [draw.at(rank) for rank in ranks] == [0, 0, 50, 100, 550, 1000, 1000]


def test_a_distribution_in_steps_is_read_as_counts():
    draw = steps([(1, 50.0), (2, 50.0), (3, 80.0), (5, 90.0), (7, 90.0)])
    assert sorted({draw.at(rank) for rank in RANKS}) == [1, 3, 5]
    assert draw.mean == pytest.approx((50 + 3 * 30 + 5 * 10) / 90)


@pytest.mark.parametrize(
    "text", ["", "x", "-3", "3-", "8-4", "4.5-8", "~1", "~0.5", "~2-3", "1e3", "1.", "nan"]
)
def test_amounts_that_mean_nothing_are_refused(text):
    with pytest.raises(ConfigError, match="^images: "):
        amount(text, "images")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Pmf({}),
        lambda: Pmf({1: 0.0}),
        lambda: Pmf({1: 2.0, 2: -1.0}),
        lambda: Quantiles([(1, 1)]),
        lambda: Quantiles([(50, 1), (50, 2)]),
        lambda: Quantiles([(50, 2), (60, 1)]),
    ],
)
def test_distributions_that_are_none_are_refused(make):
    with pytest.raises(ConfigError):
        make()


SHAPE = Shape(
    images=amount("0-4", "images"),
    tokens=quantiles("0:64 100:1264"),
    text=quantiles("0:1 100:2001"),
    output=quantiles("0:1 100:1001"),
)


def requests(coupling, count=4000, shape=SHAPE):
    source = random.Random(f"shapes {coupling}")
    maker = Requests(source, coupling, Pictures(source))
    return [maker.make(0.0, shape) for _ in range(count)]


def correlation(pairs):
    xs, ys = zip(*pairs, strict=True)
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    joint = sum((x - mean_x) * (y - mean_y) for x, y in pairs)
    return joint / math.sqrt(
        sum((x - mean_x) ** 2 for x in xs) * sum((y - mean_y) ** 2 for y in ys)
    )


@pytest.mark.parametrize(
    ("coupling", "with_images", "with_output"),
    [("independent", 0.0, 0.0), ("input", 0.98, 0.0), ("comonotone", 0.98, 1.0)],
)
def test_coupling_is_what_it_says_and_leaves_each_distribution_alone(
    coupling, with_images, with_output
):
    found = requests(coupling)
    error = 4 / math.sqrt(len(found))
    texts = [one.num_text for one in found]
    images = [(one.num_text, len(one.images)) for one in found]
    outputs = [(one.num_text, one.num_output) for one in found]
    assert abs(correlation(images) - with_images) < error
    assert abs(correlation(outputs) - with_output) < error
    assert abs(sum(texts) / len(texts) - 1001) < 2000 / math.sqrt(12) * error
    counts = [len(one.images) for one in found]
    assert abs(sum(counts) / len(counts) - 2) < math.sqrt(2) * error


def test_the_pictures_of_a_request_are_alike_only_where_they_are_coupled():
    for coupling, is_alike in (("independent", False), ("input", True), ("comonotone", True)):
        sizes = [{image.num_tokens for image in one.images} for one in requests(coupling, 50)]
        assert all(len(each) <= 1 for each in sizes) is is_alike


def test_a_prompt_is_the_prefix_then_pictures_then_text():
    shape = Shape(
        images=amount("2", "images"),
        tokens=amount("64", "tokens"),
        text=amount("0", "text"),
        output=amount("0", "output"),
        prefix=(Text(0, 30),),
    )
    (one,) = requests("independent", 1, shape)
    assert one.parts[0] == Text(0, 30)
    assert [type(part) for part in one.parts] == [Text, Image, Image, Text]
    assert (one.parts[-1].num_tokens, one.num_output) == (1, 1), "never none at all"


def test_a_context_can_count_its_pictures():
    shape = Shape(
        images=amount("1-3", "images"),
        tokens=amount("100", "tokens"),
        text=amount("250", "text"),
        output=amount("5", "output"),
        is_total=True,
    )
    found = {(len(one.images), one.num_prompt) for one in requests("input", 100, shape)}
    assert found == {(1, 250), (2, 250), (3, 301)}
