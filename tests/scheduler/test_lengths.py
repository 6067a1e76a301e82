"""Predicted lengths of answers: bounds, learning, forgetting, classes, determinism."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.lengths import BUCKET_TOKENS, Lengths


def taught(answers, tenant="a", prompt=100, images=0):
    lengths = Lengths()
    for each in answers:
        lengths.learn(tenant, prompt, images, each)
    return lengths


answers = st.lists(
    st.tuples(
        st.sampled_from(["a", "b"]),
        st.integers(0, 5000),
        st.integers(0, 3),
        st.integers(1, 20_000),
    ),
    max_size=60,
)


@given(answers, st.sampled_from(["a", "b", "c"]), st.integers(0, 5000), st.integers(0, 3),
       st.integers(1, 9000))  # fmt: skip
def test_never_beyond_what_is_asked_and_the_same_each_time(seen, tenant, prompt, images, most):
    first, second = Lengths(), Lengths()
    for each in seen:
        first.learn(*each)
        second.learn(*each)
    expected, p90 = first.predict(tenant, prompt, images, most)
    assert 1 <= expected <= p90 <= most
    assert second.predict(tenant, prompt, images, most) == (expected, p90)
    assert first.predict(tenant, prompt, images, most) == (expected, p90)


def test_before_anything_was_seen():
    assert Lengths().predict("a", 10, 0, 400) == (200, 400)
    assert Lengths().predict("a", 10, 0, 1) == (1, 1)


@pytest.mark.parametrize("seed", range(3))
def test_the_mean_and_the_bucket_of_the_ninetieth_percentile(seed):
    rng = random.Random(seed)
    seen = [round(rng.lognormvariate(5.5, 0.6)) + 1 for _ in range(2000)]
    expected, p90 = taught(seen).predict("a", 100, 0, 10_000)
    recent = sorted(seen[-50:])
    assert expected == pytest.approx(sum(recent) / 50, rel=0.35)
    assert p90 % BUCKET_TOKENS == 0
    assert abs(p90 - recent[45]) <= 2 * BUCKET_TOKENS


def test_what_was_long_ago_is_forgotten():
    lengths = taught([1000] * 200 + [50] * 200)
    assert lengths.predict("a", 100, 0, 4000)[1] == BUCKET_TOKENS


def test_an_answer_is_cut_at_what_is_asked():
    assert taught([1000] * 20).predict("a", 100, 0, 30) == (30, 30)


def test_classes_are_apart_and_the_wider_one_helps_out():
    lengths = taught([1000] * 50)
    for _ in range(50):
        lengths.learn("a", 100, 2, 50)
    assert lengths.predict("a", 100, 0, 4000)[0] == 1000
    assert lengths.predict("a", 100, 1, 4000)[0] == 50
    assert lengths.predict("new", 100, 1, 4000)[0] == 50
    lengths.learn("new", 100, 1, 3000)
    expected, p90 = lengths.predict("new", 100, 1, 4000)
    assert 50 < expected < 1000
    assert p90 == 3200
