"""The widened demo model answers as the demo model does, with three times the KV."""

import json
import random

import pytest

from bench.overlap import wide
from tests.checkpoints import DEMO
from tests.flow.drawn import picture
from tests.flow.harness import config, flow


@pytest.fixture(scope="module")
def widened(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wide")
    assert wide.write(DEMO, folder) == 4 * 2 * 6 * 32 * 4
    return folder


def test_only_the_heads_and_the_length_are_others(widened):
    before, after = (json.loads((each / "config.json").read_text()) for each in (DEMO, widened))
    changed = {key for key in after if after[key] != before[key]}
    assert changed == {"num_key_value_heads", "max_position_embeddings"}


async def test_the_answers_are_the_demo_models(widened):
    answers = []
    for model in (DEMO, widened):
        async with flow(config("EPD1", model=str(model))) as running:
            rng = random.Random("wide")
            shown = [picture(rng), "What is in the picture, and where?"]
            answers.append(await running.tokens(running.request(shown, max_tokens=24)))
    assert len(answers[0]) == 24
    assert answers[0] == answers[1]
