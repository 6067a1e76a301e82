"""The latency model: learns what steps take, keeps its error, never says that more takes less."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.estimate import Error, Estimate
from scheduler.predict import FEWEST, Speeds
from triptych.core.event import Steps

TRUE = (0.012, 3e-5, 2e-9, 4e-5, 3e-8)
"""Seconds per step, chunk token, pair, decode and cached token of some machine."""


def window(rng, *, decodes=True):
    """Steps of a run: sums of several steps, as jobs tell them."""
    count = rng.randint(1, 40)
    tokens = rng.choice([0, rng.randint(1, 512) * count])
    pairs = tokens * rng.randint(1, 4000)
    batch = rng.randint(0, 64) * count if decodes else 0
    context = batch * rng.randint(10, 3000)
    row = (count, tokens, pairs, batch, context)
    seconds = sum(a * b for a, b in zip(TRUE, row, strict=True)) * rng.uniform(0.97, 1.03)
    return Steps(count, seconds, tokens, pairs, batch, context)


def test_the_weights_of_a_machine_are_found_and_its_error_is_kept_beside_them():
    rng, speeds = random.Random(1), Speeds()
    for _ in range(300):
        speeds.learn_language("d-0@0", [window(rng)])
    costs = speeds.of("d-0@7")
    for chunks, decodes, context in [
        ((), 32, 32_000),
        (((0, 512),), 0, 0),
        (((2048, 256),), 8, 9000),
    ]:
        tokens = sum(length for _, length in chunks)
        pairs = sum(p * n + n * (n + 1) / 2 for p, n in chunks)
        row = (1, tokens, pairs, decodes, context)
        right = sum(a * b for a, b in zip(TRUE, row, strict=True))
        assert costs.language_s(chunks, decodes, context) == pytest.approx(right, rel=0.1)
    error = speeds.errors()["language_step"]
    assert error.mape < 0.05
    assert abs(error.bias) <= error.mape


def test_a_place_that_was_not_seen_is_as_fast_as_the_others():
    rng, speeds = random.Random(2), Speeds()
    unseen = speeds.of("p-1@0").language_s(((0, 256),), 0, 0)
    for _ in range(FEWEST + 40):
        speeds.learn_language("p-0@0", [window(rng)])
    known = speeds.of("p-0@0").language_s(((0, 256),), 0, 0)
    assert speeds.of("p-1@0").language_s(((0, 256),), 0, 0) == pytest.approx(known, rel=0.05)
    assert known != pytest.approx(unseen, rel=0.05)


def test_a_slower_machine_is_told_from_the_others_and_recovers():
    rng, speeds = random.Random(3), Speeds()

    def slow(steps, factor):
        return Steps(steps.count, steps.seconds * factor, steps.tokens, steps.pairs, steps.decodes,
                     steps.context)  # fmt: skip

    for _ in range(60):
        speeds.learn_language("d-0@0", [window(rng)])
        speeds.learn_language("d-1@0", [slow(window(rng), 3.0)])
    ask = ((), 16, 16_000)
    ratio = speeds.of("d-1@0").language_s(*ask) / speeds.of("d-0@0").language_s(*ask)
    assert ratio == pytest.approx(3.0, rel=0.15)
    for _ in range(250):
        speeds.learn_language("d-1@0", [window(rng)])
    ratio = speeds.of("d-1@0").language_s(*ask) / speeds.of("d-0@0").language_s(*ask)
    assert ratio == pytest.approx(1.0, rel=0.1)


class Profile:
    """Costs of a machine with a bend that no line has."""

    def vision_s(self, pictures):
        return 0.004 + 2e-5 * sum(pictures)

    def language_s(self, chunks, num_decodes, context):
        tokens = num_decodes + sum(length for _, length in chunks)
        return max(0.012, 4e-5 * tokens) + 1e-8 * context

    def decode_run_s(self, num_decodes, context, steps):
        raise NotImplementedError


def test_over_a_profile_a_factor_is_learnt():
    speeds = Speeds(Profile(), Profile())
    assert speeds.of("p-0").language_s(((0, 512),), 0, 0) == Profile().language_s(((0, 512),), 0, 0)
    for _ in range(80):
        speeds.learn_language("p-0", [Steps(2, 2 * 1.3 * 512 * 4e-5, 1024, 1024 * 256)])
        speeds.learn_vision("e-0", Steps(1, 0.5 * (0.004 + 0.02), 1000, 1000**2))
    prefill = speeds.of("p-0").language_s(((0, 512),), 0, 0)
    assert prefill == pytest.approx(1.3 * 512 * 4e-5, rel=0.02)
    assert speeds.of("p-0").language_s((), 4, 4000) == Profile().language_s((), 4, 4000)
    assert speeds.of("e-0").vision_s((1000,)) == pytest.approx(0.012, rel=0.02)


def test_decode_runs_are_the_sum_of_their_steps():
    rng, speeds = random.Random(4), Speeds()
    for _ in range(50):
        speeds.learn_language("d-0", [window(rng)])
    costs = speeds.of("d-0")
    steps = [costs.language_s((), 7, 900 + i * 7) for i in range(33)]
    assert costs.decode_run_s(7, 900, 33) == pytest.approx(sum(steps))
    assert costs.decode_run_s(7, 900, 0) == 0.0


def test_what_prefill_takes_from_decodes_is_seen():
    speeds = Speeds()
    assert speeds.chunk("pd-0") == ()
    for _ in range(60):
        speeds.learn_language("pd-0", [Steps(10, 0.3, 1000, 1000 * 150, 80, 80_000)])
    ((prefix, length),) = speeds.chunk("pd-0")
    assert (prefix, length) == (100, 100)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.floats(1e-6, 1e3)), max_size=40))
def test_weights_are_never_negative(rows):
    estimate = Estimate((1e-3, 1e-3))
    for one, other, seconds in rows:
        estimate.learn((one, other), seconds)
        assert min(estimate.weights) >= 0.0
        assert estimate.seconds((one + 1, other)) >= estimate.seconds((one, other))


def test_one_absurd_step_does_not_move_the_model_far():
    rng, speeds = random.Random(5), Speeds()
    for _ in range(100):
        speeds.learn_language("d-0", [window(rng)])
    before = speeds.of("d-0").language_s((), 8, 8000)
    speeds.learn_language("d-0", [Steps(1, 30.0, 0, 0, 8, 8000)])
    assert speeds.of("d-0").language_s((), 8, 8000) == pytest.approx(before, rel=0.2)


def test_errors_have_a_size_and_a_direction():
    error = Error()
    for _ in range(200):
        error.learn(1.5, 1.0)
        error.learn(0.9, 1.0)
    assert error.mape == pytest.approx(0.3, abs=0.03)
    assert error.bias == pytest.approx(0.2, abs=0.03)
    error.learn(1.0, 0.0)
    assert error.count == 400
