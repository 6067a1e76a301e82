"""Workloads are pure functions of their seed, and every picture is another one."""

import io

from PIL import Image

from bench.workloads import Mix, draw


def test_equal_seeds_give_equal_bytes():
    assert draw(5, seed=3) == draw(5, seed=3)
    assert draw(5, seed=3) != draw(5, seed=4)


def test_no_picture_comes_twice_and_all_are_of_the_mix():
    mix = Mix(sides=(56, 91), num_pictures=(1, 3), num_tokens=(7, 17))
    asks = draw(20, seed=1, mix=mix)
    pictures = [data for ask in asks for data in ask.pictures]
    assert len(set(pictures)) == len(pictures)
    assert {len(ask.pictures) for ask in asks} == {1, 3}
    assert {ask.max_tokens for ask in asks} == {7, 17}
    for data in pictures:
        with Image.open(io.BytesIO(data)) as image:
            assert {*image.size} <= {56, 91}
