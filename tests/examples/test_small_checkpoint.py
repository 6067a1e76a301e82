"""The small checkpoint: Transformers and the executor load it, and it answers to its picture."""

import random
import re

from transformers import AutoTokenizer

from examples.small_checkpoint import write
from tests import checkpoints
from tests.executor.driver import Driver, executors, expected, scene


def test_it_says_what_transformers_says_of_its_pictures(tmp_path):
    folder = write(tmp_path / "small")
    whole = executors(folder)
    driver = Driver(whole)
    answers = []
    for seed in (1, 2):
        one = scene(random.Random(seed), [3, (4, 4), 5], 690)
        tokens, _ = expected(folder, one, 16)
        assert driver.generate(driver.add(one), 10**6, 16) == tokens
        answers.append(tokens)
    assert answers[0] != answers[1]
    whole.close()
    checkpoints.judge.cache_clear()


def test_with_words_every_token_is_seen_as_text(tmp_path):
    folder = write(tmp_path / "small", words=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    answers = []
    for seed in (1, 2):
        tokens, _ = expected(folder, scene(random.Random(seed), [3, (4, 4), 5], 690), 16)
        assert all(re.fullmatch(" [A-Za-z]+", tokenizer.decode([token])) for token in tokens)
        answers.append(tokens)
    assert answers[0] != answers[1], "it still depends on the picture"
    checkpoints.judge.cache_clear()
