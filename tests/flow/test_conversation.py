"""A conversation of ten turns about three pictures: each is encoded once, and from turn two on only
what is new is prefilled, although decode alone has the KV of the answers."""

import random
from collections import Counter
from contextlib import aclosing
from typing import Any

import pytest

from router.journey import Trip, journey
from tests.flow.drawn import picture, words
from tests.flow.harness import Flow, config, flow
from tests.flow.told import told
from triptych.core.event import Timing
from triptych.core.handoff import EncodeJob, Job, LendJob
from triptych.core.hashing import tenant_salt
from triptych.core.ids import InstanceId
from triptych.core.lifecycle import RequestState
from triptych.core.request import Prompt, Request
from triptych.executor.models.oracle_reference import oracle_reference
from triptych.inputs.oracle_words import PATCH_SIZE

TURNS = 10
BLOCK = 16


class Sent:
    """Counts the jobs that a router sends."""

    def __init__(self, running: Flow) -> None:
        self.jobs: Counter[type] = Counter()
        self._submit = running.core.dispatcher.submit
        running.core.dispatcher.submit = self.submit

    async def submit(self, instance: InstanceId, job: Job, scope: Any) -> None:
        self.jobs[type(job)] += 1
        await self._submit(instance, job, scope)


def keep_priors(running: Flow) -> None:
    """The oracle computes tokens in microseconds, so that no fetch would ever be worth while. Let
    the router believe in the speeds of a real model."""
    running.core.stages.knowledge.latencies.learn = lambda *_: None


async def turn(running: Flow, request: Request, prompt: Prompt) -> tuple[list[int], Timing]:
    """Tokens of a prompt given as tokens, and prefill's timing."""
    core = running.core
    core.ledger.accept(request.id, request.tenant)
    trip = Trip(request, prompt, 0, tenant_salt(core.secret, request.tenant))
    async with aclosing(journey(trip, core.stages)) as tokens:
        found = [token.id async for some in tokens for token in some]
    core.ledger.close(request.id, RequestState.COMPLETED)
    assert trip.attempts == 1
    return found, trip.timings.get("prefill") or trip.timings["decode"]


@pytest.mark.parametrize("topology", ["E1,P1,D1", "EP1,D1", "E1,PD1", "EPD1"])
async def test_oracle(topology: str) -> None:
    rng = random.Random(f"conversation {topology}")
    async with flow(config(topology, "transfer.guard_s=60")) as running:
        sent = Sent(running)
        keep_priors(running)
        pictures = [picture(rng) for _ in range(3)]
        parts = [words(rng), pictures[0], words(rng), pictures[1], pictures[2], words(rng)]
        request = running.request(parts)
        salt = tenant_salt(running.core.secret, request.tenant)
        prompt = running.core.service.prompts.expand(request.messages, request.pictures, salt)
        pixels = [
            await running._decoder.decode(
                one.data, one.format, item.grid[2] * PATCH_SIZE, item.grid[1] * PATCH_SIZE
            )
            for item, one in zip(prompt.items, pictures, strict=True)
        ]
        num_loans = known = 0
        for number in range(TURNS):
            request = running.request(parts, max_tokens=rng.randint(10, 40))
            found, timing = await turn(running, request, prompt)
            expected = oracle_reference(prompt, pixels, request.sampling, request.stop, salt)
            assert found == list(expected)
            if number:  # all but the last answer's last token, by whole blocks
                assert timing.cached_tokens == (known - 1) // BLOCK * BLOCK
            known = len(prompt) + len(found)
            num_loans += (known - 1) // BLOCK > len(prompt) // BLOCK and number < TURNS - 1
            asked = tuple(rng.randrange(256) for _ in range(rng.randint(3, 60)))
            prompt = Prompt((*prompt.token_ids, *found, *asked), prompt.items)
            await told(running)
        assert sent.jobs[EncodeJob] == 3
        assert sent.jobs[LendJob] == (0 if "PD" in topology else num_loans)
        assert num_loans > TURNS / 2
