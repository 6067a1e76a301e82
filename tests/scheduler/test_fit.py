"""Costs from steps: with noise, with outliers, with only some of the stages seen."""

from random import Random

import pytest

from scheduler.fit import PRIOR, Coefficients, Online, Step, fit, with_knots

TRUTH = Coefficients(
    step_s=4e-3, sequence_s=3e-5, pair_s=2e-9, context_s=5e-8, vision_step_s=8e-3,
    visual_token_s=6e-5, square_s=3e-9, token_s=(5e-5,),
)  # fmt: skip


def step(random, part, truth=TRUTH, noise=0.0, outliers=0.0):
    costs = truth.fitted()
    pictures, chunks, decodes, context = (), (), 0, 0
    if part == "encode":
        pictures = tuple(random.randrange(16, 2000) for _ in range(random.randrange(1, 5)))
    if part in {"prefill", "mixed"}:
        count = random.randrange(1, 4)
        chunks = tuple((random.randrange(4000), random.randrange(1, 1024)) for _ in range(count))
    if part in {"decode", "mixed"}:
        decodes = random.randrange(1, 64)
        context = decodes * random.randrange(10, 3000)
    seconds = costs.vision_s(pictures) + costs.language_s(chunks, decodes, context)
    seconds *= max(0.3, random.gauss(1, noise))
    if random.random() < outliers:
        seconds *= random.uniform(2, 20)
    return Step(seconds, chunks, decodes, context, pictures)


def steps(count, parts=("encode", "prefill", "decode", "mixed"), seed=1, **how):
    random = Random(seed)
    return [step(random, random.choice(parts), **how) for _ in range(count)]


def worst(costs, truth, parts, seed=99):
    """Largest relative error on fresh steps without noise."""
    fresh = steps(300, parts, seed, truth=truth)
    return max(
        abs(
            (costs.vision_s(s.pictures) + costs.language_s(s.chunks, s.num_decodes, s.context))
            / s.seconds
            - 1.0
        )
        for s in fresh
    )


def test_steps_without_noise_give_the_truth():
    costs = fit(steps(200))
    assert worst(costs, TRUTH, ("encode", "prefill", "decode", "mixed")) < 1e-3
    assert set(costs.errors) == {"encode", "prefill", "decode", "mixed"}
    assert all(error.max < 1e-3 for error in costs.errors.values())


def test_steps_of_decodes_alone_may_be_cheaper():
    """They are recorded or captured: what a step with a chunk costs more is told apart."""
    truth = Coefficients(
        step_s=3e-4, chunk_step_s=2.4e-3, beside_s=9e-5, sequence_s=3e-5, pair_s=2e-9,
        context_s=5e-8, token_s=(5e-5,),
    )  # fmt: skip
    costs = fit(steps(300, ("prefill", "decode", "mixed"), truth=truth))
    assert costs.chunk_step_s == pytest.approx(2.4e-3, rel=1e-3)
    assert costs.beside_s == pytest.approx(9e-5, rel=1e-3)
    assert costs.decode_run_s(4, 100, 1) == pytest.approx(costs.language_s((), 4, 100))
    assert worst(costs, truth, ("prefill", "decode", "mixed")) < 1e-3
    online = Online()
    for each in steps(300, ("prefill", "decode", "mixed"), truth=truth):
        online.learn(each)
    assert online.coefficients().chunk_step_s == pytest.approx(2.4e-3, rel=0.02)


def test_noise_averages_out_and_is_told():
    costs = fit(steps(2000, noise=0.1))
    assert worst(costs, TRUTH, ("encode", "prefill", "decode", "mixed")) < 0.05
    for error in costs.errors.values():
        assert 0.06 < error.mean < 0.1
        assert abs(error.bias) < 0.03


def test_one_step_in_ten_that_hangs_does_not_matter():
    costs = fit(steps(2000, noise=0.03, outliers=0.1))
    assert worst(costs, TRUTH, ("encode", "prefill", "decode", "mixed")) < 0.06


def test_only_decodes_seen_says_nothing_of_prompts_and_pictures():
    costs = fit(steps(300, parts=("decode",), noise=0.02))
    assert worst(costs, TRUTH, ("decode",)) < 0.03
    prior = PRIOR.fitted()
    assert costs.vision_s([500, 900]) == pytest.approx(prior.vision_s([500, 900]))
    assert costs.chunk_attention == prior.chunk_attention
    assert set(costs.errors) == {"decode"}


def test_no_steps_are_the_prior():
    assert fit([]) == PRIOR.fitted()
    assert Online().fitted() == PRIOR.fitted()


def test_a_single_step_is_met_and_stays_above_zero():
    only = Step(0.1, chunks=((0, 100),))
    costs = fit([only])
    assert costs.language_s(only.chunks, 0, 0) == pytest.approx(0.1, rel=1e-3)
    assert costs.step_s >= 0.0
    assert costs.linear.at(1000) >= costs.linear.at(1) >= 0.0


def test_knots_learn_that_tokens_are_cheap_until_the_device_is_full():
    truth = with_knots(TRUTH, (256.0,))
    truth = Coefficients(
        **{
            **{name: getattr(truth, name) for name in truth.__struct_fields__},
            "token_s": (1e-6, 5e-5),
        }
    )
    seen = steps(600, ("prefill", "decode", "mixed"), truth=truth, noise=0.01)
    straight, bent = fit(seen), fit(seen, with_knots(PRIOR, (64.0, 256.0)))
    parts = ("prefill", "decode")
    assert worst(bent, truth, parts) < 0.05 < worst(straight, truth, parts)


def test_online_reaches_the_same_as_all_at_once():
    seen = steps(1500, noise=0.05, outliers=0.03)
    online = Online()
    for each in seen:
        online.learn(each)
    costs = online.fitted()
    assert worst(costs, TRUTH, ("encode", "prefill", "decode", "mixed")) < 0.08
    assert costs.errors["decode"].p50 < 0.08


def test_online_follows_a_device_that_became_slower():
    online = Online(forget=0.98)
    for each in steps(400, noise=0.02):
        online.learn(each)
    slower = Coefficients(
        **{
            name: tuple(2 * each for each in value) if name == "token_s"
            else value if name == "knots" else 2 * value
            for name, value in ((one, getattr(TRUTH, one)) for one in TRUTH.__struct_fields__)
        }
    )  # fmt: skip
    for each in steps(1600, noise=0.02, seed=7, truth=slower):
        online.learn(each)
    assert worst(online.fitted(), slower, ("encode", "prefill", "decode", "mixed")) < 0.1


def test_online_does_not_forget_prompts_during_thousands_of_decodes():
    online = Online(forget=0.9)
    for each in steps(200, ("prefill", "decode"), noise=0.01):
        online.learn(each)
    before = online.fitted().language_s([(0, 800)], 0, 0)
    for each in steps(5000, ("decode",), noise=0.01, seed=3):
        online.learn(each)
    assert online.fitted().language_s([(0, 800)], 0, 0) == pytest.approx(before, rel=0.1)


def test_online_is_the_same_for_the_same_steps():
    ends = []
    for _ in range(2):
        online = Online()
        for each in steps(100, noise=0.1):
            online.learn(each)
        ends.append(online.fitted())
    assert ends[0] == ends[1]


def test_steps_of_no_time_are_none():
    online = Online()
    online.learn(Step(0.0, num_decodes=3, context=9))
    assert online.fitted() == PRIOR.fitted()
