"""DistServe's formulas with its coefficients."""

import pytest

from simulator.costs.registry import costs
from triptych.core.errors import ConfigError

ONE = costs("a100:opt-13b/distserve").costs


def test_prompts_cost_their_tokens_and_squares():
    seconds = ONE.language_s([(0, 512), (0, 100)], 0, 0)
    assert 1e3 * seconds == pytest.approx(
        18.1025 + 0.101912 * 612 + 7.12226e-6 * (512**2 + 100**2), rel=1e-4
    )


def test_chunks_of_a_prompt_add_up_to_its_square():
    fixed = 18.1025e-3
    whole = ONE.language_s([(0, 1000)], 0, 0) - fixed
    chunks = [(0, 300), (300, 300), (600, 400)]
    parts = sum(ONE.language_s([chunk], 0, 0) - fixed for chunk in chunks)
    assert parts == pytest.approx(whole, rel=1e-4)


def test_decodes_have_two_regimes():
    assert 1e3 * ONE.language_s((), 94, 9400) == pytest.approx(
        19.9347 + 6.26936e-4 * 9400 + 0.038507 * 94, rel=1e-4
    )
    assert 1e3 * ONE.language_s((), 95, 9500) == pytest.approx(
        7.16619 + 5.798e-4 * 9500 + 0.158311 * 95, rel=1e-4
    )


def test_a_pipeline_divides_what_a_stage_is_busy():
    half = costs("a100:opt-13b/distserve,pp=2")
    assert half.costs.language_s([(0, 512)], 0, 0) == pytest.approx(
        ONE.language_s([(0, 512)], 0, 0) / 2
    )
    assert half.costs.decode_run_s(8, 800, 50) == pytest.approx(ONE.decode_run_s(8, 800, 50) / 2)
    assert half.sizes.num_devices == 2


def test_it_does_not_see():
    assert ONE.vision_s([]) == 0.0
    with pytest.raises(ConfigError, match="no encoder"):
        ONE.vision_s([100])
