import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.planner.demand import Moments, Shape, cut, demand, scaled
from tests.scheduler.table import TABLE
from triptych.core.errors import ConfigError
from triptych.core.request import Slo

COSTS = TABLE.Roofline()
MIXED = (
    Shape((1196, 144), 1404, 100),
    Shape((), 64, 10, slo="strict"),
    Shape((), 64, 10, slo="strict"),
    Shape((144,), 5000, 300, cached=1024, slo="batch"),
)


def test_means_and_second_moments_are_those_of_the_sample():
    found = demand(MIXED, COSTS, 8192, rate=3.0)
    one, two = COSTS.vision_s((1196,)) + COSTS.vision_s((144,)), COSTS.vision_s((144,))
    assert found.encode.mean == pytest.approx((one + two) / 4)
    assert found.encode.second == pytest.approx((one**2 + two**2) / 4)
    assert found.output == Moments((100 + 20 + 300) / 4, (100**2 + 200 + 300**2) / 4)
    assert (found.rate, found.images, found.text_share) == (3.0, 0.75, 0.5)


def test_equal_requests_are_one_with_a_larger_share():
    found = demand(MIXED, COSTS, 8192)
    assert [one.share for one in found.services] == [0.25, 0.5, 0.25]


def test_sequences_that_stay_long_are_seen_more_often():
    """Little: a decoding sequence met at random is one with a long answer."""
    found = demand((Shape((), 100, 10), Shape((), 1100, 990)), COSTS, 8192)
    assert found.context == pytest.approx((10 * 105 + 990 * 1595) / 1000)


def test_chunks_attend_to_what_is_cached():
    assert cut(Shape((), 5000, 1, cached=1024), 2048) == [(1024, 2048), (3072, 1928)]


def test_one_token_is_computed_however_much_is_cached():
    assert cut(Shape((), 64, 1, cached=64), 2048) == [(63, 1)]


@given(prompt=st.integers(1, 20_000), cached=st.integers(0, 20_000), chunk=st.integers(1, 4096))
def test_chunks_cover_the_rest_of_the_prompt(prompt, cached, chunk):
    pieces = cut(Shape((), prompt, 1, cached=cached), chunk)
    assert pieces[0][0] == min(cached, prompt - 1)
    assert pieces[-1][0] + pieces[-1][1] == prompt
    assert all(1 <= length <= chunk for _, length in pieces)


def test_slos_are_those_of_the_class_unless_told_otherwise():
    of = {one.slo.name: one.slo for one in demand(MIXED, COSTS, 8192).services}
    assert of["interactive"].ttft_s == 2.0
    assert of["batch"].ttft_s is None
    own = demand(MIXED, COSTS, 8192, slo_of=lambda shape: Slo("own", 1.0 + len(shape.pictures)))
    assert [one.slo.ttft_s for one in own.services] == [3.0, 1.0, 2.0]


def test_a_load_of_other_size_keeps_the_mix():
    known = demand(MIXED, COSTS, 8192)
    more = scaled(known, 7.0, encode=2.0, prefill=0.5, decode=3.0)
    assert more.rate == 7.0
    assert more.encode.mean == pytest.approx(2 * known.encode.mean)
    assert more.encode.second == pytest.approx(4 * known.encode.second)
    assert more.prefill.mean == pytest.approx(known.prefill.mean / 2)
    assert more.output.mean == pytest.approx(3 * known.output.mean)
    assert [one.share for one in more.services] == [one.share for one in known.services]
    assert scaled(known, known.rate) == known


def test_a_slower_instance_has_the_same_tokens_and_more_seconds():
    known = demand(MIXED, COSTS, 8192)
    slow = scaled(known, 1.0, slower=(2.0, 3.0))
    assert slow.encode.mean == pytest.approx(2 * known.encode.mean)
    assert slow.prefill.mean == pytest.approx(3 * known.prefill.mean)
    for tokens in ("visual", "computed", "num_chunks", "output"):
        assert [getattr(one, tokens) for one in slow.services] == [
            getattr(one, tokens) for one in known.services
        ]


def test_moments_of_constants_do_not_vary():
    assert Moments(3.0, 9.0).cv2 == 0.0
    assert Moments(3.0, 18.0).cv2 == 1.0
    assert Moments().cv2 == 0.0


@pytest.mark.parametrize(
    ("shapes", "chunk", "named"),
    [
        ((), 512, "shapes"),
        ((Shape((), 0, 1),), 512, "shape"),
        ((Shape((), 5, 0),), 512, "shape"),
        ((Shape((0,), 5, 1),), 512, "pictures"),
        ((Shape((), 5, 1),), 0, "chunk_tokens"),
    ],
)
def test_what_cannot_be_is_named(shapes, chunk, named):
    with pytest.raises(ConfigError, match=named):
        demand(shapes, COSTS, chunk)
