"""Sizes say the tokens that were asked for, and pictures come again as often as asked."""

import math
import random

import pytest

from bench.sources.pictures import MAX_ASPECT, Pictures, image_of, size_of
from bench.workload import SIDE


@pytest.mark.parametrize("low", [1, 64])
def test_a_size_has_the_tokens_that_were_asked_for(low):
    worst = 1 / 7 if low == 1 else 0.03
    for tokens in (*range(low, 3000), *range(3000, 40_000, 97)):
        image = image_of(tokens, 0)
        assert image.width % SIDE == image.height % SIDE == 0
        assert abs(image.num_tokens - tokens) <= worst * tokens
        if low == 64:
            assert image.width <= (MAX_ASPECT + 0.5) * image.height


@pytest.mark.parametrize(
    ("tokens", "size"), [(1196, (46, 26)), (15_552, (144, 108)), (576, (24, 24)), (1, (1, 1))]
)
def test_known_sizes(tokens, size):
    """1288x728 stands for 720p, 4032x3024 for EPDServe's pictures."""
    assert size_of(tokens) == (size[0] * SIDE, size[1] * SIDE)


def test_a_picture_has_a_token():
    with pytest.raises(ValueError, match="tokens"):
        size_of(0)


def test_without_repeats_every_picture_is_new():
    pictures = Pictures(random.Random("new"))
    assert len({pictures.draw(100) for _ in range(2000)}) == 2000


def test_pictures_come_again_as_often_as_asked_and_only_recent_ones():
    pictures = Pictures(random.Random("again"), repeat=0.4, recent=5)
    seen: list[object] = []
    again = 0
    for index in range(5000):
        image = pictures.draw(64 + index % 900)
        if image in seen:
            assert image in seen[-5:]
            again += 1
        else:
            seen.append(image)
    assert abs(again - 2000) < 4 * math.sqrt(5000 * 0.4 * 0.6)


def test_a_repeated_picture_keeps_its_size():
    pictures = Pictures(random.Random("size"), repeat=1.0, recent=3)
    first = pictures.sized(56, 84)
    assert [pictures.draw(4000) for _ in range(20)] == [first] * 20
