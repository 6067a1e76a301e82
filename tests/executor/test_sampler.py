import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.core.errors import InvariantBroken
from triptych.core.plan import Draw
from triptych.core.request import Sampling
from triptych.executor.sampler import draw, uniform

SAMPLINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 1e-300, 0.3, 1.0, 2.5]),
    top_p=st.sampled_from([0.0, 0.1, 0.9, 1.0]),
    top_k=st.sampled_from([0, 1, 3, 500]),
    min_p=st.sampled_from([0.0, 0.2, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 0.7, 1.8]),
    presence_penalty=st.sampled_from([0.0, 1.5]),
    frequency_penalty=st.sampled_from([0.0, -0.5]),
    seed=st.integers(-(2**63), 2**64),
    logprobs=st.sampled_from([-1, 0, 4]),
)


def one(sampling: Sampling, position: int = 10, prompt_len: int = 4) -> Draw:
    history = tuple(index % 5 for index in range(position)) if sampling.needs_history else ()
    return Draw(sampling, position, prompt_len, history)


def rows(seed: int, count: int, size: int = 37) -> torch.Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed)) * 3


@settings(max_examples=120, deadline=None)
@given(st.lists(SAMPLINGS, min_size=1, max_size=6), st.integers(0, 99), st.integers(5, 99))
def test_a_draw_does_not_see_its_neighbours(samplings, seed, position):
    logits = rows(seed, len(samplings))
    draws = [one(sampling, position) for sampling in samplings]
    together = draw(logits, draws)
    alone = tuple(draw(row[None], [each])[0] for row, each in zip(logits, draws, strict=True))
    assert together == alone
    assert all(0 <= drawn.token < logits.shape[1] for drawn in together)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0),
        Sampling(temperature=0.5, top_k=5),
        Sampling(temperature=1.5, top_p=0.8),
        Sampling(temperature=1.0, min_p=0.1),
        Sampling(temperature=1.0, top_k=9, top_p=0.9, min_p=0.05),
    ],
)
def test_frequencies_are_the_filtered_distribution(sampling: Sampling):
    """20,000 positions against probabilities worked out in another way."""
    logits = rows(4, 1, 23)
    probs = (logits[0].double() / sampling.temperature).softmax(0)
    ranked = probs.sort(descending=True)
    allowed = torch.zeros(23, dtype=torch.bool)
    mass, of_top_k = 0.0, float(ranked.values[: sampling.top_k or 23].sum())
    for rank, (value, index) in enumerate(zip(*ranked, strict=True)):
        is_cut = sampling.top_k and rank >= sampling.top_k
        if is_cut or mass >= sampling.top_p * of_top_k or value < sampling.min_p * probs.max():
            break
        allowed[index] = True
        mass += float(value)
    wanted = torch.where(allowed, probs, 0)
    wanted /= wanted.sum()
    count = 20_000
    draws = [Draw(sampling, position, 0) for position in range(count)]
    drawn = [each.token for each in draw(logits.expand(count, -1), draws)]
    seen = torch.bincount(torch.tensor(drawn), minlength=23) / count
    assert not seen[~allowed].any()
    assert (seen - wanted).abs().max() < 0.015


def test_the_same_seed_and_position_always_draw_the_same():
    sampling, logits = Sampling(temperature=1.0, seed=7), rows(1, 1)
    tokens = [draw(logits, [Draw(sampling, position, 0)])[0].token for position in range(50)]
    again = [draw(logits, [Draw(sampling, position, 0)])[0].token for position in range(50)]
    assert tokens == again
    assert len(set(tokens)) > 5
    other = Sampling(temperature=1.0, seed=8)
    assert tokens != [draw(logits, [Draw(other, p, 0)])[0].token for p in range(50)]


def test_uniform_is_even():
    numbers = np.array([uniform(3, position) for position in range(20_000)])
    assert 0 <= numbers.min() < numbers.max() < 1
    counts = np.histogram(numbers, bins=10, range=(0, 1))[0]
    assert abs(counts - 2000).max() < 200


def test_greedy_takes_the_first_of_equals_and_every_cut_leaves_one():
    logits = torch.tensor([[1.0, 5.0, 5.0, 0.0]])
    assert draw(logits, [Draw(Sampling(), 0, 0)])[0].token == 1
    narrow = Sampling(temperature=1.0, top_p=0.0, min_p=1.0, top_k=1)
    assert draw(logits, [Draw(narrow, 0, 0)])[0].token == 1
    cold = Sampling(temperature=1e-300)
    assert {draw(logits, [Draw(cold, at, 0)])[0].token for at in range(40)} == {1, 2}


def test_penalties():
    logits = torch.tensor([[4.0, 3.0, -1.0, 2.0]])

    def token(**penalties: float) -> int:
        sampling = Sampling(**penalties)
        return draw(logits, [Draw(sampling, 5, 2, (1, 1, 0, 3, 0))])[0].token

    assert token(repetition_penalty=4.0) == 0
    assert token(repetition_penalty=100.0) == 0
    assert token(presence_penalty=2.0) == 1  # the prompt's own 1 is not output
    assert token(frequency_penalty=0.4) == 0
    assert token(frequency_penalty=0.6) == 1
    logits = torch.tensor([[4.0, 3.0, -1.0, -2.0]])
    assert token(repetition_penalty=2.0, presence_penalty=1.0) == 1


def test_logprobs_are_of_the_raw_logits():
    logits = rows(9, 2)
    sampling = Sampling(temperature=0.2, top_k=2, presence_penalty=1.0, seed=1, logprobs=3)
    wanted = logits.double().log_softmax(-1)
    for index, drawn in enumerate(draw(logits, [one(sampling), one(Sampling(logprobs=0))])):
        assert drawn.logprob == pytest.approx(float(wanted[index, drawn.token]), abs=1e-9)
    top = draw(logits, [one(sampling), one(sampling)])[0].top
    best = wanted[0].topk(3)
    assert [token for token, _ in top] == best.indices.tolist()
    assert [value for _, value in top] == pytest.approx(best.values.tolist(), abs=1e-9)
    assert draw(logits, [one(sampling), one(Sampling(logprobs=0))])[1].top == ()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0)])
def test_logits_that_are_no_numbers_are_a_bug(bad: float, sampling: Sampling):
    logits = rows(1, 3)
    logits[1, 5] = bad
    with pytest.raises(InvariantBroken):
        draw(logits, [Draw(sampling, 0, 0)] * 3)


def test_a_history_that_does_not_reach_the_position_is_a_bug():
    with pytest.raises(InvariantBroken):
        draw(rows(1, 1), [Draw(Sampling(presence_penalty=1.0), 5, 2, (1, 2))])


def test_a_large_vocabulary_is_cut_exactly():
    """The partial sort of ``top_k`` and of the alternatives equals the full one, ties included."""
    logits = (rows(3, 1, 5000) * 2).round()
    full = np.argsort(-logits[0].double().numpy(), kind="stable")
    drawn = draw(logits, [Draw(Sampling(logprobs=20), 0, 0)])[0]
    assert [token for token, _ in drawn.top] == full[:20].tolist()
    hot = Sampling(temperature=1e6, top_k=7)
    seen = {draw(logits, [Draw(hot, at, 0)])[0].token for at in range(300)}
    assert seen == set(full[:7].tolist())
