"""Tokens, logits and visual tokens are those of Transformers, however the work is cut."""

import random
from pathlib import Path

import pytest
import torch

from tests import checkpoints
from tests.executor.driver import Driver, executors, expected, inputs_of, scene
from triptych.core.plan import Drawn, LanguagePlan
from triptych.executor.build import Executors

IMAGE = 690
PIECES = {
    "text": [9],
    "one": [5, (3, 5), 7],
    "first": [(4, 4), 3],
    "two": [3, (2, 7), 1, (9, 3), 4],
    "between": [8, (1, 2), 17, (7, 1), 12],
    "five": [1, (2, 2), 3, (5, 4), 1, (1, 1), 2, (3, 8), 1, (6, 6), 9],
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("pieces", PIECES)
def test_greedy_tokens_and_logits(folder: Path, whole: Executors, pieces: str, seed: int):
    """72 prompts, each in whole, in chunks of one block and in odd ones."""
    rng = random.Random(f"{pieces} {seed}")
    one = scene(rng, PIECES[pieces], IMAGE)
    tokens, logits = expected(folder, one, 12)
    driver = Driver(whole)
    sequence = driver.add(one)
    with torch.inference_mode():
        plan = LanguagePlan((sequence.segment(10**6),))
        own = whole.language._model.logits(plan)[0]
    assert (own - logits).abs().max() <= 1e-4
    assert driver.generate(sequence, 10**6, 12) == tokens
    for chunk in (16, 7):
        assert driver.generate(driver.add(one), chunk, 12) == tokens


@pytest.mark.parametrize("pieces", ["one", "two", "five"])
def test_visual_tokens(folder: Path, whole: Executors, pieces: str):
    one = scene(random.Random(pieces), PIECES[pieces], IMAGE)
    driver = Driver(whole)
    inputs = inputs_of(one)
    with torch.no_grad():
        tower = checkpoints.judge(folder).model.visual
        theirs = tower(inputs["pixel_values"], inputs["image_grid_thw"]).pooler_output
    assert (driver.rows(driver.add(one)) - theirs).abs().max() <= 1e-4


def test_the_answer_depends_on_the_picture(folders: dict[str, Path]):
    for kind in checkpoints.KINDS:
        driver = Driver(executors(folders[kind]))
        one = scene(random.Random(1), [5, (4, 4), 7], IMAGE)
        other = scene(random.Random(1), [5, (4, 4), 7], IMAGE)
        other.pixels[0] = 255 - other.pixels[0]
        answers = [driver.generate(driver.add(which), 99, 12) for which in (one, other)]
        assert answers[0] != answers[1]
        assert len(set(answers[0])) > 3
        driver.executors.close()


def test_alone_in_a_step_the_same_work_gives_the_same_bits(folder: Path):
    """Wherever its blocks lie; ``engine.deterministic`` stands on this."""
    one = scene(random.Random(4), [30, (4, 3), 41], IMAGE)
    logits = []
    for seed in (1, 2):
        driver = Driver(executors(folder), seed)
        sequence = driver.add(one)
        driver.step((sequence, 32))
        for count in (999, 1, 1):
            segment = sequence.segment(count)
            with torch.inference_mode():
                logits.append(driver.executors.language._model.logits(LanguagePlan((segment,))))
            sequence.advance(segment, Drawn(17))
        driver.executors.close()
    for index in range(3):
        assert logits[index].equal(logits[index + 3])


def test_what_lay_in_memory_before_does_not_matter(folder: Path, whole: Executors):
    """Stores full of NaN, as a step that failed may leave them."""
    whole.language.memory.tensor.fill_(float("nan"))
    whole.embeddings.tensor.fill_(float("nan"))
    one = scene(random.Random(6), [6, (3, 3), 25], IMAGE)
    driver = Driver(whole)
    sequences = [driver.add(one), driver.add(scene(random.Random(7), [70], IMAGE))]
    for chunk in (7, 99):
        while len(sequences[0].drawn) < 20:
            driver.step(*((each, 1 if each.drawn else chunk) for each in sequences))
    assert [drawn.token for drawn in sequences[0].drawn] == expected(folder, one, 20)[0]


def test_many_sequences_in_one_step(folder: Path, whole: Executors):
    """Prefill chunks and decodes of very different lengths side by side change nobody's tokens."""
    rng = random.Random(5)
    cuts = [[3], [40, (2, 3), 90], [1, (3, 3), 4], [170], [17, (1, 4), 2, (5, 2), 1], [2]]
    scenes = [scene(rng, pieces, IMAGE) for pieces in cuts]
    driver = Driver(whole)
    sequences = [driver.add(one) for one in scenes]
    while any(len(sequence.drawn) < 8 for sequence in sequences):
        work = [
            (sequence, 1 if sequence.drawn else rng.choice([1, 5, 16, 33]))
            for sequence in sequences
            if len(sequence.drawn) < 8 and rng.random() < 0.7
        ]
        rng.shuffle(work)
        driver.step(*work)
    for one, sequence in zip(scenes, sequences, strict=True):
        tokens, _ = expected(folder, one, 8)
        assert [drawn.token for drawn in sequence.drawn] == tokens


@pytest.mark.parametrize("block_size", [1, 5, 64])
def test_block_sizes(folders: dict[str, Path], block_size: int):
    one = scene(random.Random(3), [4, (3, 4), 11], IMAGE)
    tokens, _ = expected(folders["odd"], one, 9)
    made = executors(folders["odd"], block_size=block_size, embedding_block_size=block_size)
    assert Driver(made).generate(Driver(made).add(one), 6, 9) == tokens
    made.close()


def test_bfloat16_stays_near_float32(folder: Path):
    one = scene(random.Random(2), [6, (3, 5), 9], IMAGE)
    logits = {}
    for dtype in ("float32", "bfloat16"):
        made = executors(folder, dtype=dtype)
        driver = Driver(made)
        sequence = driver.add(one)
        with torch.inference_mode():
            plan = LanguagePlan((sequence.segment(10**6),))
            logits[dtype] = made.language._model.logits(plan)[0]
        assert made.language.memory.tensor.dtype is getattr(torch, dtype)
        assert len(driver.generate(sequence, 5, 6)) == 6
        made.close()
    difference = (logits["float32"] - logits["bfloat16"]).abs().mean()
    assert difference < 0.15 * logits["float32"].abs().mean()
