"""However many ranks compute a model, its tokens are the same and its KV is the same KV."""

import random
from pathlib import Path

import msgspec
import pytest
import torch

from tests.executor.driver import Driver, executors, expected, scene
from triptych.core.errors import ConfigError
from triptych.core.lifecycle import Stage
from triptych.core.plan import LanguagePlan
from triptych.executor.models import config, decoder, registry
from triptych.executor.ranks import Share

IMAGE = 690
DEGREES = [("qwen2_vl", 2), ("qwen2_5_vl", 2), ("demo", 2), ("wide", 1), ("wide", 2), ("wide", 4)]
PIECES = {
    "text": [33],
    "one": [5, (3, 5), 7],
    "five": [1, (2, 2), 3, (5, 4), 1, (1, 1), 2, (3, 8), 1, (6, 6), 9],
}

degrees = pytest.mark.parametrize(("kind", "num_ranks"), DEGREES, ids=lambda value: str(value))


def test_shares_are_the_whole():
    for size, num_ranks in ((12, 1), (12, 3), (7, 7), (10, 5)):
        parts = [Share(rank, num_ranks).of(size) for rank in range(num_ranks)]
        assert [i for part in parts for i in range(size)[part]] == list(range(size))


@degrees
@pytest.mark.parametrize("pieces", PIECES)
def test_greedy_tokens_and_logits(folders, kind: str, num_ranks: int, pieces: str):
    one = scene(random.Random(pieces), PIECES[pieces], IMAGE)
    tokens, logits = expected(folders[kind], one, 12)
    made = executors(folders[kind], num_ranks=num_ranks)
    driver = Driver(made)
    sequence = driver.add(one)
    with torch.inference_mode():
        own = made.language._model.logits(LanguagePlan((sequence.segment(10**6),)))[0]
    assert (own - logits).abs().max() <= 1e-4
    for chunk in (10**6, 16, 7):
        assert driver.generate(driver.add(one), chunk, 12) == tokens
    made.close()


@degrees
def test_many_sequences_in_one_step(folders, kind: str, num_ranks: int):
    rng = random.Random(5)
    cuts = [[3], [40, (2, 3), 90], [1, (3, 3), 4], [170], [17, (1, 4), 2, (5, 2), 1]]
    scenes = [scene(rng, pieces, IMAGE) for pieces in cuts]
    made = executors(folders[kind], num_ranks=num_ranks)
    driver = Driver(made)
    sequences = [driver.add(one) for one in scenes]
    while work := [each for each in sequences if len(each.drawn) < 8]:
        driver.step(*((each, 1 if each.drawn else rng.choice([1, 5, 33])) for each in work))
    for one, sequence in zip(scenes, sequences, strict=True):
        assert [drawn.token for drawn in sequence.drawn] == expected(folders[kind], one, 8)[0]
    made.close()


@degrees
def test_shards_together_are_the_kv_of_one_rank(folders, kind: str, num_ranks: int):
    one = scene(random.Random(7), [21, (3, 5), 40], IMAGE)
    found, runs = {}, set()
    for degree in (1, num_ranks):
        made = executors(folders[kind], num_ranks=degree)
        driver = Driver(made, seed=degree)
        sequence = driver.add(one)
        driver.generate(sequence, 16, 9)
        found[degree] = driver.kv(sequence).clone()
        layout = made.language.memory.layout
        assert layout.num_shards == degree
        runs.add((layout.block_bytes, made.memory_bytes["kv"], made.memory_bytes["weights"]))
        made.close()
    assert len(runs) == 1, "divided among ranks, not multiplied by them"
    assert found[1].shape[2] == len(one.prompt) + 8
    assert (found[1] - found[num_ranks]).abs().max() <= 1e-5


def test_two_runs_give_the_same_bits(folders):
    one = scene(random.Random(4), [30, (4, 3), 41], IMAGE)
    kept = []
    for seed in (1, 2):
        made = executors(folders["wide"], num_ranks=4)
        driver = Driver(made, seed)
        sequence = driver.add(one)
        driver.generate(sequence, 32, 6)
        kept.append(driver.kv(sequence).clone())
        made.close()
    assert kept[0].equal(kept[1])


def test_bfloat16_ranks_stay_near_float32(folders):
    one = scene(random.Random(2), [6, (3, 5), 9], IMAGE)
    logits = {}
    for dtype, num_ranks in (("float32", 1), ("bfloat16", 4)):
        made = executors(folders["wide"], dtype=dtype, num_ranks=num_ranks)
        sequence = Driver(made).add(one)
        with torch.inference_mode():
            logits[dtype] = made.language._model.logits(LanguagePlan((sequence.segment(99),)))[0]
        made.close()
    difference = (logits["float32"] - logits["bfloat16"]).abs().mean()
    assert difference < 0.15 * logits["float32"].abs().mean()


@pytest.mark.parametrize(
    ("kind", "num_ranks", "what"),
    [("odd", 2, "1 KV heads"), ("demo", 4, "2 KV heads"), ("wide", 3, "4 KV heads"),
     ("oracle", 4, "2 KV heads")],
)  # fmt: skip
def test_heads_that_cannot_be_divided_are_refused(folders, kind: str, num_ranks: int, what: str):
    path = folders.get(kind, kind)
    with pytest.raises(ConfigError, match=rf"model\.tensor_parallel: {num_ranks} .* {what}"):
        executors(path, num_ranks=num_ranks)
    executors(path, frozenset({Stage.ENCODE}), num_ranks=num_ranks).close()


def test_inner_columns_that_cannot_be_divided_are_refused(folders: dict[str, Path]):
    text = registry.read_spec(config.read(folders["wide"])).text
    uneven = msgspec.structs.replace(text, intermediate_size=74)
    with pytest.raises(ConfigError, match=r"model\.tensor_parallel: 4 does not divide 74 inner"):
        decoder.kv_layout(uneven, block_size=16, dtype="float32", model="x", num_shards=4)
