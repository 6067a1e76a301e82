"""Frames of captured steps: what they are given, when they fit, what padding leaves alone."""

import random
import threading

import pytest
import torch

pytest.importorskip("triton", reason="no Triton for this platform")

from tests.executor.driver import Driver, executors, scene
from triptych.core.plan import LanguagePlan
from triptych.core.request import Sampling
from triptych.executor import graphs
from triptych.executor.attention.plan import Span
from triptych.executor.batch import Row
from triptych.executor.graphs import LEAST_BLOCKS, MOST_FRAMES, SIZES, DecodeGraphs

BLOCK = 4
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


CLEARED = []
"""Blocks, step by step, that were to be cleared."""


class Seen:
    """A computation that notes its inputs; logits name their row."""

    def __init__(self):
        self.inputs = []

    def __call__(self, inputs):
        self.inputs.append(inputs)
        return torch.arange(len(inputs.tokens), device=DEVICE)[:, None].float().expand(-1, 3)


def rows(*ends):
    return [
        Row(10 + n, 100 + n, Span(end - 1, end, tuple(range(8 * n, 8 * n + 99))))
        for n, end in enumerate(ends)
    ]


@pytest.mark.skipif(DEVICE == "cuda", reason="a captured computation is called at capture only")
def test_a_step_is_padded_to_a_frame():
    seen = Seen()
    made = DecodeGraphs(seen, CLEARED.append, BLOCK, DEVICE)
    logits = made.logits(rows(5, 1, 12))
    (inputs,) = seen.inputs
    assert logits[:, 0].tolist() == [0, 1, 2]
    assert inputs.tokens.tolist() == [10, 11, 12, 0]
    assert inputs.positions.tolist() == 3 * [[100, 101, 102, 0]]
    assert inputs.plan.slots.tolist() == [1 * BLOCK, 8 * BLOCK, 18 * BLOCK + 3, -1]
    assert inputs.plan.ends.tolist() == [5, 1, 12, 0]
    assert inputs.plan.table.shape == (4, LEAST_BLOCKS)
    assert inputs.plan.table[:, :3].tolist() == [[0, 1, 0], [8, 0, 0], [16, 17, 18], [0, 0, 0]]
    assert CLEARED.pop().tolist() == [1, 8], "those that begin a block; the third fills one"


@pytest.mark.skipif(DEVICE == "cuda", reason="a captured computation is called at capture only")
def test_frames_are_few_and_stay_where_they_are():
    seen = Seen()
    made = DecodeGraphs(seen, CLEARED.append, BLOCK, DEVICE)
    for count, end in (
        (1, 3),
        (1, 30),
        (2, 30),
        (1, 32),
        (1, 33),
        (1, 64),
        (1, 65),
        (3, 2),
        (4, 9),
    ):
        made.logits(rows(*[end] * count))
    frames = [(len(one.tokens), one.plan.table.shape[1]) for one in seen.inputs]
    assert frames == [(1, 8), (1, 8), (2, 8), (1, 8), (1, 16), (1, 16), (1, 32), (4, 8), (4, 8)]
    places = {
        (frame, one.tokens.data_ptr()) for frame, one in zip(frames, seen.inputs, strict=True)
    }
    assert len(places) == len(set(frames))


def test_what_no_frame_holds_is_not_captured(monkeypatch):
    made = DecodeGraphs(Seen(), CLEARED.append, BLOCK, DEVICE)
    assert made.logits([]) is None
    assert made.logits(rows(*[1] * (SIZES[-1] + 1))) is None
    assert made.logits(rows(*[1] * SIZES[-1])).shape == (SIZES[-1], 3)
    monkeypatch.setattr(graphs, "MOST_FRAMES", 3)
    for count in (1, 2, 4, 8, 16):
        made.logits(rows(*[1] * count))
    assert len(made._frames) == 3 < MOST_FRAMES


def test_a_step_that_shares_much_is_not_captured(monkeypatch):
    """Three sequences of 30 tokens that share 5 whole blocks, a fourth of its own."""
    made = DecodeGraphs(Seen(), CLEARED.append, BLOCK, DEVICE)
    shared = (50, 51, 52, 53, 54)
    work = [Row(1, 30, Span(29, 30, (*shared, *range(8 * n, 8 * n + 3)))) for n in range(3)] + rows(
        30
    )[:1]
    assert made._shared(work) == 0, "too little to look for"
    monkeypatch.setattr(graphs, "MUCH_SHARED", 2 * 5 * BLOCK)
    assert made._shared(work) == 2 * 5 * BLOCK
    assert made.logits(work) is None
    monkeypatch.setattr(graphs, "MUCH_SHARED", 2 * 5 * BLOCK + 1)
    assert made._shared(work) == 2 * 5 * BLOCK
    assert made.logits(work).shape == (4, 3)
    assert made._shared(work[2:]) == 0


def test_steps_of_a_model_are_those_of_its_layers(folders):
    """Decodes through a frame, of three rows padded to four, against the same steps without."""
    found = []
    for is_captured in (True, False):
        whole = executors(folders["qwen2_5_vl"], kernels="triton", device=DEVICE)
        model, driver = whole.language._model, Driver(whole)
        model._graphs = model._graphs if is_captured else None
        asked = [Sampling(), Sampling(temperature=1.0, seed=3), Sampling()]
        texts = [scene(random.Random(n), [3 + n], 690) for n in range(3)]
        sequences = [driver.add(*pair) for pair in zip(texts, asked, strict=True)]
        driver.step(*((one, 10**6) for one in sequences))
        before = driver.runs.clone()
        driver.step(*((one, 1) for one in sequences))
        changed = {
            index for index in range(len(before)) if not before[index].equal(driver.runs[index])
        }
        assert changed == {one.blocks[-1] for one in sequences}
        with torch.inference_mode():
            plan = LanguagePlan(tuple(one.segment(1) for one in sequences))
            found.append(
                (model.logits(plan), [one.tokens for one in sequences], driver.runs.clone())
            )
        assert is_captured == (model._graphs is not None and len(model._graphs._frames) == 1)
        whole.close()
    assert (found[0][0] - found[1][0]).abs().max() < 1e-4
    assert found[0][1] == found[1][1]
    assert (found[0][2] - found[1][2]).abs().max() < 1e-4


@pytest.mark.gpu
def test_captured_frames_in_turns_beside_a_thread_that_allocates(folders):
    """Three sizes alternate, one is thrown out and captured again, and all say what steps that are
    not captured say, while another thread takes and frees device memory."""
    is_over = threading.Event()

    def allocate():
        while not is_over.is_set():
            torch.empty(1 << 22, device=DEVICE).fill_(1.0)
            torch.cuda.empty_cache()

    found = []
    for is_captured in (True, False):
        whole = executors(folders["qwen2_5_vl"], kernels="triton", device=DEVICE)
        model, driver = whole.language._model, Driver(whole)
        model._graphs = model._graphs if is_captured else None
        beside = threading.Thread(target=allocate)
        beside.start()
        sequences = [driver.add(scene(random.Random(n), [3 + n], 690)) for n in range(5)]
        driver.step(*((one, 10**6) for one in sequences))
        for count in (1, 3, 5, 3, 1, 5, 2, 1) * 3:
            driver.step(*((one, 1) for one in sequences[:count]))
            if is_captured and count == 2:
                model._graphs._frames.clear()
        is_over.set()
        beside.join()
        is_over.clear()
        assert not is_captured or not model._graphs._refused
        found.append([one.tokens for one in sequences])
        whole.close()
    assert found[0] == found[1]
