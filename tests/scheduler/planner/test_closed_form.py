import heapq
import math
import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.planner.candidate import judged, sustained
from scheduler.planner.closed_form import Prediction, Works
from scheduler.planner.demand import Shape
from scheduler.planner.problem import Footprint, Link, Pool
from tests.scheduler.table import TABLE
from triptych.core.errors import ConfigError
from triptych.core.request import Slo
from triptych.core.topology import parse

TOPOLOGIES = ("EPD8", "E2,P4,D2", "EP5,D3", "ED3,P5", "E1,PD7", "E2,PD3,EPD3", "E1,EP2,ED1,P2,D2")
MIXED = tuple(
    Shape((600,) * n, 100 + 600 * n, 40 + 40 * n, slo="multi-image") for n in (0, 0, 1, 2, 4)
)


def prediction(topology, shapes=MIXED, **changes):
    problem = msgspec.structs.replace(TABLE.problem(shapes), **changes)
    works, kind = Works(problem), problem.kinds[0]
    layout = tuple(Pool(role, count, kind) for role, count in parse(topology))
    work = works.of(kind, problem.chunks[0])
    return Prediction(problem, layout, [work] * len(layout))


def goodput(topology, shapes=MIXED, **changes):
    made = prediction(topology, shapes, **changes)
    return sustained(made, 0.9, made.bound)


@pytest.mark.parametrize("topology", TOPOLOGIES)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_attainment_is_a_share_and_falls_with_the_rate(topology, data):
    made = prediction(topology)
    rates = st.floats(0.01, 1.2 * made.bound)
    low, high = sorted((data.draw(rates), data.draw(rates)))
    at_low, at_high = made.at(low), made.at(high)
    for each in (at_low, at_high):
        assert all(0.0 <= share <= 1.0 + 1e-9 for share in (each.attainment, each.ttft, each.tpot))
        assert all(0.0 <= share <= 1.0 + 1e-9 for share in each.by_class.values())
    assert at_high.attainment <= at_low.attainment + 0.02


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_nothing_is_served_beyond_the_bound(topology):
    made = prediction(topology)
    assert made.at(1.01 * made.bound).attainment < 0.999
    assert made.at(3.0 * made.bound).attainment < 0.7
    assert made.at(0.001 * made.bound).attainment > 0.99


@pytest.mark.parametrize(
    ("fewer", "more"),
    [("E1,P4,D2", "E2,P4,D2"), ("E2,P3,D2", "E2,P4,D2"), ("EPD4", "EPD5"), ("EP2,D1", "EP2,D2")],
)
def test_another_instance_is_never_worse(fewer, more):
    assert goodput(more) >= 0.99 * goodput(fewer)


def test_few_images_do_not_pay_for_an_encoder_of_their_own():
    """Papers: EPD must lose or tie at 0.3 images per request and below."""
    text = TABLE.WORKLOADS["text only"]
    assert goodput("EPD8", text) > max(goodput(f"E1,P{p},D{7 - p}", text) for p in range(2, 7))


def test_pictures_of_one_request_are_encoded_side_by_side():
    """EPDServe's intra-request parallelism: time to the first token falls with encoders."""
    eight = (Shape((2691,) * 8, 21_600, 10, slo="video"),)
    alone, spread = (prediction(t, eight).at(0.01).ttft_s for t in ("E1,P4,D1", "E4,P4,D1"))
    vision_s = TABLE.Roofline().vision_s((2691,))
    assert alone - spread == pytest.approx(6 * vision_s, rel=0.05)


def test_what_stays_in_one_instance_moves_over_no_link():
    slow = Link(latency_s=0.5, bytes_per_s=1e9)
    both = {"embedding_link": slow, "kv_link": slow}
    for topology, is_moved in (("EPD8", False), ("E2,P4,D2", True)):
        ttft_s, tpot_s = (
            [getattr(prediction(topology, **links).at(0.1), field) for links in ({}, both)]
            for field in ("ttft_s", "tpot_s")
        )
        assert (ttft_s[1] - ttft_s[0] > 0.25) is is_moved
        assert (tpot_s[1] - tpot_s[0] > 0.001) is is_moved


def test_kv_that_does_not_fit_bounds_the_batch():
    small = Footprint(language_bytes=140e9, kv_token_bytes=57_344)
    made = prediction("E2,P4,D2", footprint=small)
    assert made.max_decodes <= 0.9 * 1e9 / 57_344 / 500
    assert made.bound < prediction("E2,P4,D2").bound


def test_bursts_cost_goodput():
    tight = {"slo_of": lambda _: Slo("tight", 0.3, 0.05)}
    assert goodput("E2,P4,D2", arrival_cv2=16.0, **tight) < 0.9 * goodput("E2,P4,D2", **tight)


def test_a_tighter_slo_never_serves_more():
    served = [
        goodput("E2,P4,D2", slo_of=lambda _, scale=scale: Slo("x", 0.4 * scale, 0.03 * scale))
        for scale in (0.05, 0.25, 0.5, 1.0, 2.0)
    ]
    assert served == sorted(served)
    assert served[0] == 0.0
    assert served[-1] > 0.0


def test_the_bottleneck_is_where_an_instance_helps_most():
    rate = {t: goodput(t) for t in ("E1,P5,D2", "E2,P5,D2", "E1,P6,D2", "E1,P5,D3")}
    named = judged(Works(TABLE.problem(MIXED)), prediction("E1,P5,D2").layout, 8192).bottleneck
    helps = {"encode": rate["E2,P5,D2"], "prefill": rate["E1,P6,D2"], "decode": rate["E1,P5,D3"]}
    assert helps[named] == max(helps.values())


def test_a_layout_without_a_stage_is_refused():
    problem = TABLE.problem(MIXED)
    pool = Pool(frozenset(), 1, problem.kinds[0])
    with pytest.raises(ConfigError, match="decode, encode, prefill"):
        Prediction(problem, (pool,), [Works(problem).of(problem.kinds[0], 512)])


def simulated_ttft(shapes, rate, num_encode, num_prefill, number, seed):
    """First tokens of E+P by events: a central queue at each stage, pictures spread over encoders
    in order of arrival, prefill in order of its inputs."""
    costs, source = TABLE.Roofline(), random.Random(seed)
    encoders, ready, now = [0.0] * num_encode, [], 0.0
    for index in range(number):
        now += source.expovariate(rate)
        shape = source.choice(shapes)
        done = now
        for tokens in shape.pictures:
            start = max(now, heapq.heappop(encoders))
            heapq.heappush(encoders, start + costs.vision_s((tokens,)))
            done = max(done, start + costs.vision_s((tokens,)))
        ready.append((done, index, now, shape))
    servers, times = [0.0] * num_prefill, []
    for done, _, arrival, shape in sorted(ready):
        end = max(done, heapq.heappop(servers)) + costs.language_s(((0, shape.prompt),), 0, 0)
        heapq.heappush(servers, end)
        times.append(end - arrival)
    return times


@pytest.mark.parametrize(("share", "off"), [(0.5, 0.02), (0.8, 0.06), (0.92, 0.15)])
@pytest.mark.parametrize("counts", [(1, 2), (2, 4), (4, 3), (2, 2)])
def test_first_tokens_in_time_are_those_of_a_simulation(counts, share, off):
    """The closed form against events, at a share of the highest rate: near saturation of both
    stages it is the pessimistic one, because large requests wait for each other only once."""
    shapes = tuple(Shape((1196,) * n, 64 + 1196 * n, 2) for n in (1, 1, 1, 2, 4))
    bound_s = 0.25
    made = prediction(
        f"E{counts[0]},P{counts[1]},D8",
        shapes,
        slo_of=lambda _: Slo("x", bound_s, None),
        embedding_link=Link(),
        chunks=(1 << 20,),
    )
    rate = share * made.bound
    times = [
        seconds
        for seed in (1, 2, 3)
        for seconds in simulated_ttft(shapes, rate, *counts, 8_000, seed)[500:]
    ]
    estimate = made.at(rate)
    in_time = sum(seconds <= bound_s for seconds in times) / len(times)
    assert estimate.ttft == pytest.approx(in_time, abs=off)
    assert estimate.ttft_s == pytest.approx(math.fsum(times) / len(times), rel=2.5 * off)


def test_requests_without_pictures_leave_encoders_alone():
    """Ten shares of a tenth are not quite 1: that rest is no picture."""
    made = prediction("E2,P1,D1", [Shape((), 100 + number, 5) for number in range(10)])
    assert made.at(1.0).utilisation["encode"] == 0.0
