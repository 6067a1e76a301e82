"""Kinds without a file: what each one offers, and that every option does what it says."""

import math

import pytest

from bench.sources.describe import describe
from bench.sources.registry import KINDS, workload
from bench.sources.synthetic import SERVEGEN
from bench.workload import Image, Text
from tests.bench.sources.traces import drawn


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_needs_no_more_than_its_name(kind):
    rate = None if kind == "closed_loop" else 5.0
    found = drawn(workload(f"synthetic:{kind}"), rate, 60.0, 1)
    assert len(found) > 20
    other = list(workload(f"synthetic:{kind}").arrivals(rate, 60.0, 2))
    seeds = ({part for one in each for part in one.parts} for each in (found, other))
    assert not set.intersection(*seeds), "another seed, other texts and pictures"


def test_the_tables_have_the_published_means():
    """ServeGen's image clients: 1.51 pictures, 592 tokens a picture, 568 of text, 127 of output;
    the percentiles that were published with them."""
    means = [SERVEGEN[name].mean for name in ("images", "tokens", "text", "output")]
    assert means == pytest.approx([1.51, 592, 568, 127], rel=0.03)
    published = {
        "images": {0.95: 4, 0.99: 9},
        "tokens": {0.5: 432, 0.75: 1196, 0.95: 1232},
        "text": {0.5: 94, 0.9: 1913},
        "output": {0.5: 98, 0.9: 262, 0.99: 583},
    }
    for name, points in published.items():
        assert {rank: SERVEGEN[name].at(rank) for rank in points} == points
    shares = [sum(SERVEGEN["images"].at(i / 1e4) == n for i in range(10_000)) for n in range(5)]
    assert shares == pytest.approx([700, 7420, 630, 720, 210], abs=6)


def test_the_mix_of_servegen_draws_its_tables():
    found = describe(workload("synthetic:servegen"), 20.0, 1000.0, 1)
    for name, drawn_ in (("images", found.images), ("text", found.text), ("output", found.output)):
        error = 4 * drawn_.deviation / math.sqrt(found.num_requests)
        assert abs(drawn_.mean - SERVEGEN[name].mean) < error
    assert found.gap_cv == pytest.approx(1.0, abs=0.05)
    assert abs(found.rate - 20.0) < 4 * math.sqrt(20.0 / 1000)


def test_heavy_and_light_have_their_pictures():
    heavy = drawn(workload("synthetic:image_heavy"), 10.0, 200.0, 1)
    assert {len(one.images) for one in heavy} == {4, 5, 6, 7, 8}
    assert {image.num_tokens for one in heavy for image in one.images} == {1196}
    light = drawn(workload("synthetic:image_light"), 10.0, 1000.0, 1)
    assert {len(one.images) for one in light} == {0, 1}
    share = sum(len(one.images) for one in light) / len(light)
    assert abs(share - 0.3) < 4 * math.sqrt(0.21 / len(light))


def test_phases_take_turns():
    found = drawn(workload("synthetic:alternating,phase_s=10"), 20.0, 100.0, 1)
    for one in found:
        assert bool(one.images) is (one.at_s // 10 % 2 == 1)


def test_epdserves_requests_are_all_alike():
    found = drawn(workload("synthetic:epdserve,images=4"), 10.0, 30.0, 1)
    for one in found:
        assert [(image.width, image.height) for image in one.images] == [(4032, 3024)] * 4
        assert (one.num_text, one.num_output) == (22, 10)


def test_the_shift_of_roles_comes_after_ten_requests():
    """Ten requests of 50 tokens, then of 500, at 3 per second: EPDServe's shift of load."""
    found = drawn(workload("synthetic:role_shift"), None, 100 / 3, 1)
    assert [one.num_output for one in found] == [50] * 10 + [500] * 90


def test_a_video_is_its_frames():
    (one, *_) = drawn(workload("synthetic:video,images=64"), 1.0, 20.0, 1)
    assert len({image.content for image in one.images}) == 64
    assert one.slo == "video"


def test_a_prefix_is_shared_and_pictures_come_again():
    found = drawn(
        workload("synthetic:fixed,prefix=100,repeat=0.5,recent=4,images=2"), 10.0, 200.0, 1
    )
    assert {one.parts[0] for one in found} == {Text(0, 100)}
    images = [image for one in found for image in one.images]
    assert abs(len(set(images)) / len(images) - 0.5) < 4 * 0.5 / math.sqrt(len(images))


def test_rates_follow_a_profile_of_the_right_mean():
    load = workload("synthetic:fixed,profile=0:1/30:3,period_s=60")
    found = drawn(load, 10.0, 600.0, 1)
    late = sum(one.at_s % 60 >= 30 for one in found)
    assert abs(len(found) - 6000) < 4 * math.sqrt(6000)
    assert abs(late - 4500) < 4 * math.sqrt(4500)


@pytest.mark.parametrize(
    ("options", "cv"),
    [("arrivals=gamma,cv=3", 3.0), ("arrivals=weibull,shape=0.5", math.sqrt(5)),
     ("arrivals=uniform", 0.0), ("arrivals=poisson", 1.0), ("batch=4", math.sqrt(7))],
)  # fmt: skip
def test_gaps_are_as_asked(options, cv):
    found = describe(workload(f"synthetic:fixed,{options}"), 20.0, 1000.0, 1)
    assert found.gap_cv == pytest.approx(cv, rel=0.08, abs=1e-6)


def test_a_request_is_the_same_at_any_rate():
    load = workload("synthetic:servegen,repeat=0.2")
    slow, fast = ([*load.arrivals(rate, 50.0, 5)] for rate in (1.0, 5.0))
    assert 10 < len(slow) < len(fast)
    assert [one.parts for one in slow] == [one.parts for one in fast[: len(slow)]]


def test_the_option_rate_is_the_own_rate():
    load = workload("synthetic:fixed,rate=7,arrivals=uniform")
    assert len(drawn(load, None, 10.0, 1)) == 70
    assert len(drawn(load, 2.0, 10.0, 1)) == 20


def test_pictures_have_the_size_that_is_asked_for():
    (one, *_) = drawn(workload("synthetic:fixed,size=84x56"), 1.0, 20.0, 1)
    (image,) = one.images
    assert image == Image(image.content, 84, 56)
    assert image.num_tokens == 6
