"""The sampler on a device against its twin and against ``executor.sampler``, its specification."""

import itertools
import random

import pytest
import torch

from triptych.core.errors import InvariantBroken
from triptych.core.plan import Draw
from triptych.core.request import Sampling
from triptych.executor.kernels.reference import sampling as twins
from triptych.executor.kernels.reference.sampling import UNIFORM, history_of, pack
from triptych.executor.sampler import draw

pytest.importorskip("triton")
from triptych.executor.kernels import logprobs, sampling

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
"""Of numpy, in which the interpreter computes: infinities are meant."""


@pytest.fixture(params=["one chunk", "many chunks", "no room"])
def sizes(request, monkeypatch):
    """Rows in one chunk and one tile; in many; and without room to gather a row's head."""
    chunk, capacity, tile = {
        "one chunk": (512, 512, 512),
        "many chunks": (128, 512, 128),
        "no room": (256, 2, 128),
    }[request.param]
    monkeypatch.setattr(sampling, "CHUNK", chunk)
    monkeypatch.setattr(sampling, "CAPACITY", capacity)
    monkeypatch.setattr(sampling, "TILE", tile)
    return 14 if request.param == "one chunk" else 3  # rows: the interpreter is slow in loops


def samplings(count, seed):
    """All kinds of cut and penalty, mixed."""
    rng = random.Random(seed)
    return [
        Sampling(
            temperature=rng.choice([0.0, 1e-300, 0.3, 0.7, 1.0, 2.5, 1e4]),
            top_p=rng.choice([0.0, 0.1, 0.9, 0.99, 1.0, 1.0]),
            top_k=rng.choice([0, 0, 1, 3, 20, 300, 500]),
            min_p=rng.choice([0.0, 0.0, 0.02, 0.2, 1.0]),
            repetition_penalty=rng.choice([1.0, 1.0, 0.7, 1.8]),
            presence_penalty=rng.choice([0.0, 0.0, 1.5]),
            frequency_penalty=rng.choice([0.0, 0.0, -0.5, 0.25]),
            seed=rng.randrange(2**63),
        )
        for _ in range(count)
    ]


def batch(count, vocab, seed, device, *, is_tied=False):
    """Logits, what to draw, and its parameters and histories."""
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(count, vocab, generator=generator)
    if is_tied:
        logits = logits.round() + torch.where(torch.rand(logits.shape) < 0.5, 0.0, -0.0)
        logits[:, 1::5] = -torch.inf
    draws, rows = [], []
    for one in samplings(count, seed):
        tokens = torch.randint(0, vocab, (12,), generator=generator) // 7
        history = tuple(tokens.tolist()) if one.needs_history else ()
        draws.append(Draw(one, 12, 5, history))
        rows.append(history_of(draws[-1], vocab))
    params = pack(draws, range(count)).to(device)
    return logits.to(device), draws, params, torch.stack(rows).to(device)


@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("vocab", [1, 257])
def test_tokens_are_the_specified_ones(device, sizes, vocab, is_tied):
    """Penalties round to float32 here: with random logits that orders no two tokens anew."""
    count = sizes if vocab > 1 else 3
    logits, draws, params, history = batch(count, vocab, vocab, device, is_tied=is_tied)
    before = logits.clone()
    tokens, sound = sampling.sample(logits, params, history)
    assert sound.all()
    assert tokens.tolist() == [one.token for one in draw(logits.cpu(), draws)]
    assert torch.equal(tokens, twins.sample(logits, params, history)[0])
    assert torch.equal(logits, before)


def test_a_row_does_not_see_its_neighbours(device):
    logits, _, params, history = batch(4, 100, 5, device)
    together, _ = sampling.sample(logits, params, history)
    for row in range(4):
        part = slice(row, row + 1)
        assert sampling.sample(logits[part], params[part], history)[0] == together[row]


@pytest.mark.parametrize("cut", [{}, {"top_k": 5}, {"top_p": 0.8}, {"min_p": 0.2}])
def test_every_part_of_the_uniform_range_draws_its_token(device, cut):
    """Just below and just above each border between two tokens of the sorted order."""
    logits = torch.randn(1, 11, generator=torch.Generator().manual_seed(4)).to(device)
    one = Draw(Sampling(temperature=0.8, **cut), 0, 0)
    weights, order = (logits[0].double() / 0.8).softmax(0).sort(descending=True)
    kept = weights[: cut.get("top_k", 11)]
    if "top_p" in cut:
        kept = kept[: int((kept.cumsum(0) < 0.8).sum()) + 1]
    kept = kept[kept >= cut.get("min_p", 0) * kept[0]]
    borders = (kept.cumsum(0) / kept.sum())[:-1]
    params = pack([one], [-1]).repeat(2 * len(borders), 1)
    params[:, UNIFORM] = torch.cat([borders - 1e-12, borders + 1e-12])
    found, _ = sampling.sample(logits.expand(len(params), -1), params.to(device))
    assert found.tolist() == [*order[: len(borders)].tolist(), *order[1 : len(kept)].tolist()]
    params[:, UNIFORM] = 1 - 2.0**-53
    assert sampling.sample(logits, params[:1].to(device))[0] == order[len(kept) - 1]


def test_greedy_takes_the_lowest_of_equals_at_every_dtype(device, sizes):
    for dtype, row in itertools.product((torch.float32, torch.float16, torch.bfloat16), range(3)):
        logits = torch.zeros(1, 150, dtype=dtype, device=device)
        logits[0, [149, 60 + row, 61 + row, 33]] = torch.tensor([3, 3, 3, 2.0]).to(logits)
        params = pack([Draw(Sampling(), 0, 0)], [-1]).to(device)
        assert sampling.sample(logits, params)[0].item() == 60 + row


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_row_without_a_best_is_flagged_and_alone(device, bad):
    logits, _, params, history = batch(4, 100, 9, device)
    clean, _ = sampling.sample(logits, params, history)
    logits[1, 50] = bad
    logits[2] = -torch.inf
    out = torch.full((4,), 77, device=device), torch.ones(4, dtype=torch.bool, device=device)
    scratch = torch.zeros(sampling.scratch_bytes(4, 100), dtype=torch.uint8, device=device)
    found = sampling.sample(logits, params, history, out=out, scratch=scratch.fill_(255))
    assert found[0] is out[0]
    assert out[1].tolist() == [True, False, False, True]
    assert out[0].tolist() == [clean[0].item(), 0, 0, clean[3].item()]
    twin = twins.sample(logits, params, history)
    assert torch.equal(twin[0], out[0])
    assert torch.equal(twin[1], out[1])


def test_a_large_vocabulary_in_whole_chunks(device):
    """At the sizes that a GPU uses, three chunks."""
    logits, draws, params, history = batch(3, 9001, 2, device)
    tokens, _ = sampling.sample(logits, params, history)
    assert tokens.tolist() == [one.token for one in draw(logits.cpu(), draws)]


@pytest.mark.parametrize(("vocab", "count"), [(1, 1), (37, 20), (37, 0)])
@pytest.mark.parametrize("chunk", [16, 512])
def test_logprobs(device, monkeypatch, vocab, count, chunk):
    monkeypatch.setattr(logprobs, "CHUNK", chunk)
    logits = (3 * torch.randn(4, vocab + 2, generator=torch.Generator().manual_seed(0)))[:, 1:-1]
    logits[1] = logits[1].round()
    logits[2, : vocab // 2] = -torch.inf
    logits[3] -= 1000.0
    tokens = torch.tensor([0, vocab - 1, vocab - 1, vocab // 2])
    found = logprobs.top_logprobs(logits.to(device), tokens.to(device), count)
    own, ids, values = twins.top_logprobs(logits, tokens, count)
    # Both are float64 sums rounded to float32: one unit of numbers up to 32.
    assert torch.allclose(found[0].cpu(), own, rtol=0, atol=4e-6)
    assert torch.equal(found[1].cpu(), ids)
    assert torch.allclose(found[2].cpu(), values, rtol=0, atol=4e-6)
    one = Draw(Sampling(logprobs=count), 0, 0)
    for row, drawn in enumerate(draw(logits, [one] * 4)):
        assert [token for token, _ in drawn.top] == found[1][row].tolist()
        wanted = [value for _, value in drawn.top]
        assert found[2][row].tolist() == pytest.approx(wanted, abs=4e-6)


def test_what_does_not_fit_is_refused(device):
    logits, _, params, history = batch(3, 20, 1, device)
    tokens = torch.zeros(3, dtype=torch.int64, device=device)
    for call in (
        lambda: sampling.sample(logits, params[:2], history),
        lambda: sampling.sample(logits, params.float(), history),
        lambda: sampling.sample(logits, params, history[:, :10]),
        lambda: sampling.sample(logits, params, history.long()),
        lambda: sampling.sample(logits.double(), params, history),
        lambda: sampling.sample(logits, params, out=(tokens, tokens)),
        lambda: sampling.sample(logits, params, scratch=tokens.to(torch.uint8)),
        lambda: logprobs.top_logprobs(logits, tokens[:2], 1),
        lambda: logprobs.top_logprobs(logits, tokens, 21),
    ):
        with pytest.raises(InvariantBroken):
            call()
