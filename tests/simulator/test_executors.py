"""Steps that are told one by one: the tokens, contexts and ends of those that the server runs."""

import asyncio

import pytest

from scheduler.fit import Coefficients
from simulator import texts
from simulator.cores import Cores
from simulator.executors import EmptyMemory, SimulatedLanguage
from simulator.world import World
from triptych.core.ids import BlockId, JobId
from triptych.core.layout import Layout
from triptych.core.plan import Draw, LanguagePlan, Segment
from triptych.core.request import Sampling

STEP_S, TOKEN_S = 0.5, 0.125
COSTS = Coefficients(
    step_s=STEP_S, sequence_s=0.0, pair_s=0.0, context_s=TOKEN_S, token_s=(0.0,)
).fitted()  # fmt: skip
SEEDS = (11, 12)


class Pace:
    """Implements ``simulator.executors.Pace`` on cores that nobody else uses."""

    def __init__(self, world):
        self.world = world
        self.cores = Cores(world, (1.0,))
        self.worked_on, self.drawn = [], []

    def begin(self, what, share=1.0):
        assert what == "decode"
        return 2.0

    def wait_s(self, num_jobs):
        return 0.0

    def told(self):
        pass

    def turned(self, num_jobs, num_prompts, then):
        then()

    def decodes(self, jobs):
        pass

    def worked(self, what, begin_s, num_jobs, num_tokens):
        self.worked_on.append((begin_s, self.world.time(), num_jobs, num_tokens))

    def drew(self, job, index, times_s):
        self.drawn.append((job, index, list(times_s)))


def plan(steps):
    def decode(seed):
        draw = Draw(Sampling(seed=seed), position=5, prompt_len=3)
        return Segment(JobId(f"{seed}"), 4, (1,), (BlockId(0),), (), draw)

    return LanguagePlan(tuple(map(decode, SEEDS)), steps)


@pytest.mark.parametrize(("interrupt_s", "steps"), [(None, 4), (0.1, 1), (8.0, 3)])
def test_every_step_is_told_with_its_tokens_as_long_as_nobody_interrupts(interrupt_s, steps):
    world = World()
    pace = Pace(world)
    memory = EmptyMemory(Layout("kv", "m", "uint8", (1, 1, 16, 1, 1), 16), 4)
    language, told = SimulatedLanguage(memory, None, COSTS, pace, 1), []
    assert language.tells_steps

    async def main():
        def on_drawn(drawn, seconds):
            told.append(([one.token for one in drawn], seconds))

        if interrupt_s is not None:
            asyncio.get_running_loop().call_later(interrupt_s, language.interrupt)
        takes = world.run_in_executor(None, language.execute, plan(4), None, on_drawn)
        result = await takes
        told.append(([one.token for one in result.drawn], result.seconds))

    world.run_until_complete(main())
    world.close()
    # A step sees the tokens before it and its own, of each sequence.
    seconds = [2.0 * (STEP_S + TOKEN_S * 2 * (5 + index)) for index in range(4)]
    tokens = [[texts.token(seed, 2 + index) for seed in SEEDS] for index in range(4)]
    assert told == [
        (drawn, pytest.approx(one)) for drawn, one in zip(tokens[:steps], seconds, strict=False)
    ]
    end_s = sum(seconds[:steps])
    assert pace.worked_on == [(0.0, pytest.approx(end_s), 2, 2 * steps)]
    assert [(job, index) for job, index, _ in pace.drawn] == [
        (str(seed), 2 + index) for index in range(steps) for seed in SEEDS
    ]
