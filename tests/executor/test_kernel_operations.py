"""A model whose layers are our kernels says what the plain one says. Small: interpreted here."""

import random

import pytest
import torch

from tests.executor.driver import Driver, executors, scene
from tests.executor.memory import BLOCK, DEVICE, GROUP, SIZE, Memory, spans_of
from triptych.core.errors import ConfigError, InvariantBroken
from triptych.core.plan import Draw, LanguagePlan
from triptych.core.request import Sampling
from triptych.executor.attention.plan import Span
from triptych.executor.kernels.reference.sampling import history_of
from triptych.executor.operations import PLAIN, Needs, operations

pytest.importorskip("triton", reason="no Triton for this platform")

IMAGE = 690
TOLERANCE = 1e-4
"""Of float32 numbers of unit size: sums of a few hundred terms in another order."""


def kernels(*, deterministic=False):
    return chosen("triton", DEVICE, SIZE, BLOCK, deterministic=deterministic)


def chosen(choice, device, head, block_size, *, deterministic=False):
    needs = Needs(device, "bfloat16", 1, head, head, block_size)
    return operations(choice, needs, deterministic=deterministic)


@pytest.mark.parametrize(
    "kind", ["qwen2_5_vl", pytest.param("qwen2_vl", marks=[pytest.mark.slow, pytest.mark.matrix])]
)
def test_a_picture_and_the_answer(kind, folders):
    """LayerNorm and quick GELU, RMSNorm and windows: towers and decoders of both families."""
    one, rows, logits, tokens = scene(random.Random(1), [3, (2, 3), 2], IMAGE), [], [], []
    for name in ("plain", "triton"):
        whole = executors(folders[kind], kernels=name, device=DEVICE)
        driver = Driver(whole)
        sequence = driver.add(one)
        rows.append(driver.rows(sequence))
        with torch.inference_mode():
            plan = LanguagePlan((driver.add(one).segment(10**6),))
            logits.append(whole.language._model.logits(plan))
        tokens.append(driver.generate(sequence, 7, 3))
        whole.close()
    assert (rows[0] - rows[1]).abs().max() < TOLERANCE
    assert (logits[0] - logits[1]).abs().max() < TOLERANCE
    assert tokens[0] == tokens[1]


@pytest.mark.parametrize(
    "sizes",
    [[(0, 1)], [(4, 5), (33, 34), (50, 51)], [(0, 9), (30, 47)], [(8, 9), (40, 41), (3, 20)]],
)
def test_attention_over_one_rank_and_layer(sizes):
    spans = spans_of(*sizes)
    memory = Memory(spans)
    found, store, plan = memory.attend(kernels(), spans)
    wanted, expected, _ = memory.attend(PLAIN, spans)
    assert plan.cascade is None
    assert (found - wanted).abs().max() < TOLERANCE
    own = [2 * block + 1 for span in spans for block in span.blocks]
    assert (store[own] - expected[own]).abs().max() < TOLERANCE
    changed = (store[own] != memory.store[own]).any(dim=0).any(dim=0)
    assert changed.any()
    tails = [
        store[2 * span.blocks[span.end // BLOCK] + 1, :, :, span.end % BLOCK :]
        for span in spans
        if span.end % BLOCK and span.end // BLOCK * BLOCK >= span.start
    ]
    assert all(not tail.any() for tail in tails), "what lies behind goes to others with the block"
    others = [row for row in range(len(store)) if row not in own]
    assert torch.equal(store[others].isnan(), memory.store[others].isnan())


def test_who_shares_a_beginning_reads_it_once():
    alone, *_ = spans_of((299, 300))
    spans = [Span(20, 21, (38, 39)), alone, Span(290, 291, (*alone.blocks[:17], 35, 36))]
    spans.sort(key=lambda span: span.end)
    memory = Memory(spans)
    found, _, plan = memory.attend(kernels(), spans)
    assert plan.cascade is not None
    assert plan.cascade.prefix_ends.tolist() == [17 * BLOCK]
    wanted, _, _ = memory.attend(PLAIN, spans)
    assert (found - wanted).abs().max() < TOLERANCE
    *_, plan = memory.attend(kernels(deterministic=True), spans)
    assert plan.cascade is None, "what is shared would decide about bits"


def test_deterministic_bits_do_not_depend_on_the_neighbours():
    one, short, long, chunk = spans_of((69, 70), (3, 4), (90, 91), (5, 40))
    memory, made_of = Memory([one, short, long, chunk]), kernels(deterministic=True)
    alone, _, _ = memory.attend(made_of, [one])
    for neighbours in ([one, long], [short, one], [short, one, long, chunk]):
        found, _, _ = memory.attend(made_of, neighbours)
        assert found[neighbours.index(one)].equal(alone[0])
    first, _, _ = memory.attend(made_of, [chunk])
    assert found[3:].equal(first)


ASKED = [
    Sampling(temperature=0.0),
    Sampling(temperature=0.9, top_p=0.8, top_k=20, seed=11, logprobs=4),
    Sampling(temperature=1.2, min_p=0.05, seed=5, repetition_penalty=1.3),
    Sampling(temperature=0.0, logprobs=0, presence_penalty=0.5, frequency_penalty=0.2),
]


def draws_of(asked):
    history = tuple(random.Random(1).choices(range(300), k=40))
    return [Draw(one, 40, 25, history if one.needs_history else ()) for one in asked]


@pytest.mark.parametrize("asked", [ASKED, ASKED[:1], ASKED[2:3], []])
def test_tokens_are_the_samplers(asked):
    torch.manual_seed(4)
    logits, draws = 4 * torch.randn(len(asked), 300), draws_of(asked)
    found = kernels().draw(logits.to(DEVICE), draws)
    for ours, theirs in zip(found, PLAIN.draw(logits, draws), strict=True):
        assert ours.token == theirs.token
        assert [token for token, _ in ours.top] == [token for token, _ in theirs.top]
        pairs = [(ours.logprob, theirs.logprob)]
        pairs += [(a, b) for (_, a), (_, b) in zip(ours.top, theirs.top, strict=True)]
        for mine, other in pairs:
            assert (mine is None) == (other is None)
            assert mine is None or abs(mine - other) < TOLERANCE


def test_histories_are_those_of_the_twin():
    """Tokens that come again, in the prompt, in the output and in both."""
    asked = Sampling(repetition_penalty=1.2)
    draws = [
        Draw(asked, 7, 4, (3, 3, 5, 9, 5, 8, 8)),
        Draw(asked, 3, 3, (0, 0, 9)),
        Draw(asked, 2, 0, (1, 1)),
    ]
    from triptych.executor.kernel_operations import _histories  # wants Triton

    found = _histories(draws, 10, torch.device(DEVICE))
    assert found.cpu().equal(torch.stack([history_of(one, 10) for one in draws]))
    assert found[0].tolist() == [0, 0, 0, 1, 0, 3, 0, 0, 4, 1]


@pytest.mark.parametrize("history", [(1, 2), (1, 2, 300), (1, -1, 2), ()])
def test_a_history_that_is_none_is_refused_before_the_device_sees_it(history):
    draws = [Draw(Sampling(repetition_penalty=1.2), 3, 1, history)]
    for made_of in (PLAIN, kernels()):
        with pytest.raises(InvariantBroken, match="history does not reach"):
            made_of.draw(torch.randn(1, 300, device=DEVICE), draws)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy's, when interpreted
def test_logits_that_are_no_numbers_are_a_failed_step():
    logits = torch.randn(2, 300)
    logits[1, 7] = float("nan")
    with pytest.raises(InvariantBroken, match="not finite"):
        kernels().draw(logits.to(DEVICE), draws_of(ASKED[:2]))


def test_a_table_that_is_too_short_is_a_bug():
    layout = Memory([]).layout
    for span in (Span(0, 17, (1,)), Span(3, 3, (1,))):
        with pytest.raises(InvariantBroken, match="does not cover"):
            kernels().planner(layout, DEVICE, GROUP).plan([span])


def test_what_cannot_be_had_is_refused():
    assert chosen("plain", "cpu", 64, 16) is PLAIN
    assert chosen("auto", "cpu", 64, 16) is PLAIN
    with pytest.raises(ConfigError, match=r"model\.kernels: none for heads of 12"):
        chosen("triton", DEVICE, 12, 16)
    with pytest.raises(ConfigError, match=r"model\.kernels: none for a cache\.block_size of 12"):
        chosen("triton", DEVICE, 64, 12)
    # Where nobody insists on kernels, what has none is computed plainly.
    assert chosen("auto", "cuda", 12, 16) is PLAIN
    assert chosen("auto", "cuda", 64, 12) is PLAIN


def test_ranks_in_processes_compute_plainly(folders):
    with pytest.raises(ConfigError, match=r"model\.kernels: ranks in processes"):
        executors(folders["wide"], num_ranks=2, parallel="processes", kernels="triton")
