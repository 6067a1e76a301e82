"""Budgets by search are those that counting would find; costs and roles decide."""

import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler import registry
from scheduler.budgets import (
    ALPHA,
    MARGIN,
    PICTURE_TOKENS,
    SATURATED,
    image_budget,
    largest,
    saturation,
    step_limit_s,
    token_budget,
)
from scheduler.prior import PRIOR, Prior
from simulator.costs.card import to_json
from simulator.costs.registry import costs as shipped
from triptych.core.config import Config, EngineConfig, load
from triptych.core.errors import ConfigError
from triptych.core.lifecycle import Stage
from triptych.core.request import Slo

E, P, D = Stage.ENCODE, Stage.PREFILL, Stage.DECODE
priors = st.builds(
    Prior,
    vision_step_s=st.floats(0, 0.2),
    vision_token_s=st.floats(1e-6, 1e-3),
    step_s=st.floats(0, 0.1),
    token_s=st.floats(1e-6, 1e-3),
    decode_s=st.floats(0, 1e-3),
    pair_s=st.floats(0, 1e-7),
    context_s=st.floats(0, 1e-7),
)


def test_limits_by_role():
    slo = Slo("x", 2.0, 0.05)
    for role in ({E}, {P}, {E, P}):
        assert step_limit_s(frozenset(role), slo) == ALPHA * 2.0
    for role in ({D}, {P, D}, {E, D}, {E, P, D}):
        assert step_limit_s(frozenset(role), slo) == pytest.approx((1 - MARGIN) * 0.05)
        assert step_limit_s(frozenset(role), Slo()) == math.inf


@given(st.integers(0, 100), st.integers(0, 100))
def test_largest(limit, most):
    assert largest(lambda number: number <= limit, most) == min(limit, most)


@settings(max_examples=60)
@given(priors, st.floats(1e-3, 2.0), st.integers(0, 64), st.integers(0, 100_000))
def test_the_token_budget_fits_and_one_more_does_not(costs, limit_s, decodes, context):
    found = token_budget(costs, limit_s, decodes, context)

    def seconds(length):
        return costs.language_s(((0, length),) if length else (), decodes, context)

    if seconds(0) > limit_s:
        assert found == 0
        return
    assert seconds(found - decodes) <= limit_s
    assert found - decodes == 65_536 or seconds(found - decodes + 1) > limit_s


@settings(max_examples=60)
@given(priors, st.floats(1e-3, 2.0))
def test_the_image_budget_fits_and_is_not_beyond_saturation(costs, limit_s):
    found, enough = image_budget(costs, limit_s), saturation(costs)
    pictures = (PICTURE_TOKENS,) * (found // PICTURE_TOKENS) + (found % PICTURE_TOKENS,)
    assert costs.vision_s([size for size in pictures if size]) <= limit_s
    assert found <= enough
    if found < enough:
        assert costs.vision_s((found + 1,)) > limit_s
    best = 256 / costs.vision_s((PICTURE_TOKENS,) * 256)
    number = enough // PICTURE_TOKENS
    assert number / costs.vision_s((PICTURE_TOKENS,) * number) >= SATURATED * best * (1 - 1e-9)


def settled(role, costs, **engine):
    engine = {"token_budget": 0, "image_budget_tokens": 0, **engine}
    config = msgspec.structs.replace(Config(), engine=EngineConfig(**engine))
    return registry.settle(config, frozenset(role), costs).engine


def test_budgets_of_an_instance():
    small = {"chunk_tokens": 16, "max_sequences": 8}
    strict, normal, video = (
        settled({P, D}, PRIOR, slo=name, **small).token_budget
        for name in ("strict", "interactive", "video")
    )
    assert 24 < strict < normal < video < settled({P}, PRIOR, **small).token_budget
    given_ = settled({P}, PRIOR, token_budget=300, image_budget_tokens=7)
    assert (given_.token_budget, given_.image_budget_tokens) == (300, 7)
    unknown = settled({P, D}, None)
    assert (unknown.token_budget, unknown.image_budget_tokens) == (512, 2048)
    assert settled({P}, None, chunk_tokens=4096).token_budget == 4096


def test_a_chunk_fits_beside_all_decodes_however_slow_they_are():
    slow = settled({P, D}, Prior(step_s=9.0, vision_step_s=9.0), chunk_tokens=100, max_sequences=7)
    assert slow.token_budget == 107
    assert slow.image_budget_tokens == 1


def test_costs_of_a_file():
    """The form in which cost files are shipped and written by a profile."""
    card = shipped("h200:qwen2.5-vl-7b")
    assert registry.costs_of(to_json(card)).language_s(((0, 500),), 3, 900) == pytest.approx(
        card.costs.language_s(((0, 500),), 3, 900), rel=1e-3
    )
    for wrong in (b"{}", b"?", b'{"costs": {"step_s": "x"}}'):
        with pytest.raises(ConfigError, match=r"engine\.costs"):
            registry.costs_of(wrong)


def test_budgets_of_a_measured_model():
    """Qwen2.5-VL-7B on an H200, interactive: budgets of the published systems' order."""
    costs = shipped("h200:qwen2.5-vl-7b").costs
    alone, mixed = settled({E, P}, costs), settled({E, P, D}, costs)
    for budget, role in ((alone, {E, P}), (mixed, {E, P, D})):
        limit_s = step_limit_s(frozenset(role), Slo("interactive", 2.0, 0.05))
        assert costs.language_s(((0, budget.token_budget - 32 * (D in role)),), 0, 0) <= limit_s
        assert costs.vision_s((PICTURE_TOKENS,)) <= limit_s
    assert 512 <= mixed.token_budget < alone.token_budget
    assert PICTURE_TOKENS <= mixed.image_budget_tokens <= alone.image_budget_tokens


def test_a_budget_of_nothing_is_one_that_is_searched():
    config = load(None, ["engine.token_budget=0", "engine.image_budget_tokens=0"], environment={})
    assert config.engine.token_budget == 0
    with pytest.raises(ConfigError, match=r"engine\.slo"):
        load(None, ["engine.slo=batch"], environment={})


@given(priors, st.integers(0, 30), st.integers(0, 1000), st.integers(0, 40))
def test_a_run_of_decodes_costs_what_its_steps_cost(costs, decodes, context, steps):
    every = [costs.language_s((), decodes, context + i * decodes) for i in range(steps)]
    assert costs.decode_run_s(decodes, context, steps) == pytest.approx(sum(every))


class Blind:
    """Costs of a model without pictures."""

    def vision_s(self, pictures):
        raise AssertionError("nobody encodes")

    def language_s(self, chunks, num_decodes, context):
        return 0.01

    decode_run_s = None


def test_what_is_given_is_not_looked_for():
    given_ = settled({P, D}, Blind(), image_budget_tokens=7)
    assert given_.image_budget_tokens == 7 and given_.token_budget > 0
