"""On a CPU a step of several pictures gains nothing: the first need not wait for the last."""

import random

import pytest

from tests.flow.drawn import picture
from tests.flow.harness import config, flow
from triptych.executor.vision import VisionExecutor


@pytest.mark.parametrize("encodes_alone", [True, False])
async def test_pictures_that_came_together_have_steps_of_their_own(
    monkeypatch: pytest.MonkeyPatch, encodes_alone: bool
) -> None:
    sizes: list[int] = []
    execute, made = VisionExecutor.execute, VisionExecutor.__init__

    def count(self, plan):
        sizes.append(len(plan.tasks))
        return execute(self, plan)

    def make(self, *parts):
        made(self, *parts)
        assert self.encodes_alone, "tests run on a CPU"
        self.encodes_alone = encodes_alone

    monkeypatch.setattr(VisionExecutor, "execute", count)
    monkeypatch.setattr(VisionExecutor, "__init__", make)
    async with flow(config("EPD1", "limits.decode_workers=2")) as running:
        rng = random.Random(7)
        for _ in range(4):
            pictures = [picture(rng) for _ in range(6)]
            asked = running.request([*pictures, "How many?"], max_tokens=2)
            assert await running.tokens(asked) == await running.oracle_answer(asked)
    assert sum(sizes) == 24
    assert (max(sizes) == 1) == encodes_alone
