"""Predictions of whole requests: more work, here or there, never ends sooner; admission follows."""

import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.forecast import Forecast, Terms, Work
from scheduler.latency import Latencies
from scheduler.overload import RETRY_S, Load, judge
from scheduler.predict import Speeds
from tests.scheduler.test_placement import cluster, instance
from tests.scheduler.test_predict import window
from triptych.core.request import Slo
from triptych.core.view import Expected, Pending

COUNTS = st.integers(0, 40)
ROLES = ("E-0", "E-1", "P-0", "PD-0", "D-0", "EPD-0")


def forecast(seed: int = 0) -> Forecast:
    rng, speeds = random.Random(seed), Speeds()
    for _ in range(20):
        speeds.learn_language("P-0", [window(rng)])
        speeds.learn_language("D-0", [window(rng)])
    return Forecast(Latencies(speeds), Terms(max_sequences=16))


def pending(name: str, jobs: list[tuple[int, int]]) -> Pending:
    """What jobs of so many prompt and output tokens are on an instance of that name."""
    letters, whole = name.partition("-")[0], Pending()
    for prompt, output in jobs:
        more = {}
        if "E" in letters:
            more |= {"pictures": 1, "image_tokens": prompt}
        if "P" in letters:
            pairs = prompt * (prompt + 1) // 2
            more |= {"prompts": 1, "prompt_tokens": prompt, "prompt_pairs": pairs}
        if "D" in letters:
            more |= {"decodes": 1, "context_tokens": prompt, "output_tokens": output}
        added = {field: getattr(whole, field) + number for field, number in more.items()}
        whole = msgspec.structs.replace(whole, **added)
    return whole


def view(jobs: dict[str, list[tuple[int, int]]]):
    return cluster(
        *(
            msgspec.structs.replace(instance(name), pending=pending(name, jobs.get(name, [])))
            for name in ROLES
        )
    )


JOBS = st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 500)), max_size=20)
LOADS = st.fixed_dictionaries(dict.fromkeys(ROLES, JOBS))
WORKS = st.builds(
    lambda pictures, text, tail, out: Work(
        tuple(pictures), text + sum(pictures), min(tail, text + sum(pictures)), out
    ),
    st.lists(st.integers(1, 2000), max_size=4), st.integers(1, 4000), st.integers(1, 4000),
    st.integers(1, 300),
)  # fmt: skip
SLOS = st.builds(
    Slo, st.just("custom"), st.none() | st.floats(0.01, 20.0), st.none() | st.floats(0.001, 0.3)
)
PREDICTIONS = forecast()


def load_of(jobs, work, ahead_s=0.0) -> Load:
    found = PREDICTIONS.outlook(view(jobs), work)
    is_idle = not any(jobs.values()) and not ahead_s
    return Load(found.expected, ahead_s, found.drain_s, is_idle=is_idle)


def verdict(slo, jobs, work, ahead_s=0.0):
    return judge(
        slo, load_of(jobs, work, ahead_s), 0.9, lambda: PREDICTIONS.alone(view(jobs), work)
    )


@given(LOADS, WORKS, SLOS, st.floats(0, 5), st.data())
@settings(max_examples=150, deadline=None)
def test_what_is_accepted_under_a_load_is_accepted_under_any_smaller_one(jobs, work, slo, s, data):
    fewer = {name: [one for one in ones if data.draw(st.booleans())] for name, ones in jobs.items()}
    less_s = data.draw(st.floats(0, 1)) * s
    if verdict(slo, jobs, work, s).is_accepted:
        assert verdict(slo, fewer, work, less_s).is_accepted


@given(LOADS, WORKS, SLOS, st.floats(0, 5), st.floats(1, 10))
@settings(max_examples=150, deadline=None)
def test_a_laxer_bound_is_never_refused_where_a_stricter_one_is_accepted(jobs, work, slo, s, more):
    laxer = [
        Slo("c", slo.ttft_s and slo.ttft_s * more, slo.tpot_s and slo.tpot_s * more),
        Slo("c", None, slo.tpot_s),
        Slo("c", slo.ttft_s, None),
    ]
    if verdict(slo, jobs, work, s).is_accepted:
        assert all(verdict(each, jobs, work, s).is_accepted for each in laxer)


@given(LOADS, WORKS, SLOS)
@settings(max_examples=50, deadline=None)
def test_a_smaller_request_is_never_refused_where_a_larger_one_is_accepted(jobs, work, slo):
    smaller = Work(work.pictures[1:], work.tokens, work.tail, work.num_output)
    shorter = Work(work.pictures, work.tokens, max(1, work.tail // 2), work.num_output)
    if verdict(slo, jobs, work).is_accepted:
        assert verdict(slo, jobs, smaller).is_accepted
        assert verdict(slo, jobs, shorter).is_accepted


def test_nobody_is_kept_from_an_idle_cluster():
    impossible = Slo("custom", 1e-9, 1e-9)
    assert verdict(impossible, {}, Work(tokens=100)).is_accepted
    refused = verdict(impossible, {"D-0": [(10, 10)]}, Work(tokens=100))
    assert not refused.is_accepted
    assert refused.retry_after_s == RETRY_S[1]


def test_the_time_to_come_back_is_that_by_which_it_is_late():
    busy = {name: [(3000, 100)] * 20 for name in ROLES}
    work = Work(tokens=500)
    late_s = load_of(busy, work).expected.ttft_s + 3.0 - 0.9 * 5.0
    refused = verdict(Slo("c", 5.0, None), busy, work, 3.0)
    assert not refused.is_accepted
    assert refused.retry_after_s == pytest.approx(max(1.0, late_s))


def test_a_request_that_may_degrade_is_served_without_bounds():
    busy = {name: [(3000, 100)] * 20 for name in ROLES}
    found = verdict(Slo("c", 0.2, None, may_degrade=True), busy, Work(tokens=500))
    assert found.is_accepted
    assert found.is_degraded
    assert not verdict(Slo("c", 1e6, None, may_degrade=True), busy, Work(tokens=5)).is_degraded


def test_pictures_are_encoded_beside_each_other_and_beside_the_text():
    work = Work((1000,) * 4, 6000, 1500, 10)
    quiet = PREDICTIONS.outlook(view({}), work).expected.ttft_s
    text = PREDICTIONS.outlook(view({}), Work((), 6000, 0, 10)).expected.ttft_s
    busy = PREDICTIONS.outlook(view(dict.fromkeys(ROLES, [(4000, 1)] * 9)), work).expected.ttft_s
    assert text <= quiet < text + 4 * PREDICTIONS.look(view({}))[0].picture_s(1000)
    assert busy > quiet


def test_what_is_not_computing_is_learnt_and_promised():
    found = Forecast(Latencies())
    expected = Expected(0.1, 0.01)
    for _ in range(60):
        found.saw(expected, 0.35, 0.015)
    promised = found.promise(expected)
    assert promised.ttft_s == pytest.approx(0.35, rel=0.02)
    assert promised.tpot_s == pytest.approx(0.015, rel=0.02)
    assert found.ttft_error.mape < 0.1


def test_views_that_did_not_change_are_not_computed_again():
    found = Forecast(Latencies())
    first = view({})
    before = list(found.look(first))
    changed = msgspec.structs.replace(first.instances[2], pending=Pending(prompts=1))
    after = found.look(type(first)((*first.instances[:2], changed, *first.instances[3:])))
    assert [a is b for a, b in zip(before, after, strict=True)] == [
        place != 2 for place in range(len(before))
    ]


def test_room_is_asked_for_the_longest_answer_that_is_likely():
    busy = view({name: [(1000, 50)] for name in ROLES})
    rooms = [
        PREDICTIONS.outlook(busy, Work(tokens=100, num_output=10, most_output=most)).room_s
        for most in (20, 2000)
    ]
    assert rooms[0] < rooms[1]
