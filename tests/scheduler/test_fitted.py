"""Seconds of a step from parts."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.curves import Curve, line
from scheduler.fitted import Attention, DecodeAttention, FitError, Fitted, fit_error

COSTS = Fitted(
    step_s=1e-3,
    sequence_s=1e-5,
    linear=Curve((1.0, 64.0, 512.0), (4e-3, 4.2e-3, 9e-3)),
    draws=Curve((1.0, 100.0), (2e-4, 3e-4)),
    chunk_attention=Attention(1, 100.0, Curve((1e3, 1e6), (1e-4, 5e-3))),
    decode_attention=DecodeAttention(
        (1, 8, 32),
        (
            Curve((100.0, 5000.0, 9000.0), (1e-4, 2e-4, 9e-4)),
            Curve((800.0, 7000.0), (2e-4, 8e-4)),
            Curve((3200.0, 9000.0, 60000.0), (3e-4, 9e-4, 4e-3)),
        ),
    ),
    vision_step_s=2e-3,
    vision_linear=line(0.0, 1e-5),
    vision_attention=Attention(32, 10.0, line(0.0, 1e-9)),
    errors={"linear": FitError(10, 0.01, 0.01, 0.02, 0.03)},
)


def test_nothing_takes_no_time():
    assert COSTS.language_s((), 0, 0) == 0.0
    assert COSTS.vision_s(()) == 0.0
    assert COSTS.decode_run_s(0, 0, 5) == COSTS.decode_run_s(4, 100, 0) == 0.0


@given(batch=st.integers(1, 100), context=st.integers(0, 80_000), steps=st.integers(1, 300))
def test_a_run_of_decodes_is_the_sum_of_its_steps(batch, context, steps):
    slow = sum(COSTS.language_s((), batch, context + i * batch) for i in range(steps))
    assert COSTS.decode_run_s(batch, context, steps) == pytest.approx(slow, rel=1e-12)


def test_a_chunk_pays_for_its_prefix():
    first = COSTS.language_s([(0, 256)], 0, 0)
    later = COSTS.language_s([(4096, 256)], 0, 0)
    pairs = 256 * 4096
    assert later - first == pytest.approx(pairs * (5e-3 - 1e-4) / (1e6 - 1e3), rel=1e-6)


def test_a_mixed_step_passes_weights_once():
    prompt, decode = COSTS.language_s([(0, 512)], 0, 0), COSTS.language_s((), 32, 32_000)
    assert max(prompt, decode) < COSTS.language_s([(0, 512)], 32, 32_000) < prompt + decode


def test_batches_between_measured_ones_lie_between():
    attention = COSTS.decode_attention
    below, above = attention.at(8, 9000.0), attention.at(32, 9000.0)
    assert attention.at(20, 9000.0) == pytest.approx((below + above) / 2)
    assert attention.at(64, 18_000.0) == pytest.approx(2 * above)


def test_a_large_picture_costs_more_than_its_tokens_in_small_ones():
    assert COSTS.vision_s([4096]) > COSTS.vision_s([1024] * 4)
    rows = 32 * 4
    assert COSTS.vision_s([100]) == pytest.approx(2e-3 + 1e-3 + rows * 110 * 1e-9)


def test_copies_of_an_encoder_share_pictures_not_one_picture():
    many = msgspec.structs.replace(COSTS, vision_ranks=4)
    assert many.vision_s([1000]) == COSTS.vision_s([1000])
    assert many.vision_s([1000] * 4) == COSTS.vision_s([1000])
    assert many.vision_s([1000] * 5) == COSTS.vision_s([1000] * 2)
    assert many.vision_s([900, 500, 300, 200, 100]) == COSTS.vision_s([900])


def test_json_brings_it_back():
    again = msgspec.json.decode(msgspec.json.encode(COSTS), type=Fitted)
    assert again == COSTS


def test_errors_are_relative_and_signed():
    error = fit_error([(1.1, 1.0), (0.9, 1.0), (2.4, 2.0)])
    assert error.num_points == 3
    assert error.mean == pytest.approx(0.4 / 3)
    assert error.bias == pytest.approx(0.2 / 3)
    assert (error.p50, error.max) == (pytest.approx(0.1), pytest.approx(0.2))
    assert fit_error([]).num_points == 0
