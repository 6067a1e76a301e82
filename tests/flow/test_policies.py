"""Tokens do not depend on a policy: every one of them on the oracle, with bounds that press."""

import asyncio
import random

import msgspec
import pytest

from tests.flow.drawn import parts, picture, words
from tests.flow.harness import Flow, config, flow
from tests.scheduler.drawn import BATCHINGS, ENCODE_ORDERS, ORDERS
from triptych.core.handoff import Job
from triptych.core.ports import Instance
from triptych.core.request import Request, Slo

CASES = [("EPD1", "fcfs", name, "fcfs") for name in BATCHINGS]
CASES += [("E1,P1,D1", name, "decode_first", "fcfs") for name in ORDERS if name != "fcfs"]
CASES += [("E1,PD1", "fcfs", "decode_first", name) for name in ENCODE_ORDERS if name != "fcfs"]
CASES += [("E2,P1,D1", "slack", "slack", "slack")]
TIGHT = (
    "cache.kv_blocks=80",
    "cache.embedding_blocks=40",
    "engine.chunk_tokens=32",
    "engine.token_budget=48",
    "engine.image_budget_tokens=40",
    "engine.max_sequences=4",
)
SLOS = (Slo(), Slo("late", 0.0, 0.001), Slo("tight", 0.5, 0.02), Slo("wide", 30.0, 5.0))


def draw(running: Flow, rng: random.Random) -> list[Request]:
    """Requests with 0 to 3 pictures, a common beginning, bounds that are met, pressing or lost."""
    shared = [words(rng, 20, 40), picture(rng)]
    return [
        msgspec.structs.replace(
            running.request(parts(rng, index % 4, shared), max_tokens=rng.randint(2, 20)),
            slo=SLOS[index % len(SLOS)],
            priority=index % 3 - 1,
        )
        for index in range(10)
    ]


@pytest.mark.parametrize(("topology", "order", "batching", "encode"), CASES)
async def test_the_same_tokens(topology: str, order: str, batching: str, encode: str) -> None:
    policy = f"engine.order={order}", f"engine.batching={batching}", f"engine.encode_order={encode}"
    async with flow(config(topology, *TIGHT, *policy)) as running:
        requests = draw(running, random.Random(f"{order} {batching} {encode}"))
        found = await asyncio.gather(*map(running.tokens, requests))
        for request, tokens in zip(requests, found, strict=True):
            assert tokens == await running.oracle_answer(request)
        await running.assert_idle()


async def test_jobs_say_how_urgent_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    async with flow(config("E1,P1,D1")) as running:
        sent: list[Job] = []
        first = running.cluster.view().instances[0].description.id
        connection = type(running.cluster.instance(first))
        submit = connection.submit

        async def noted(self: Instance, job: Job) -> None:
            sent.append(job)
            await submit(self, job)

        monkeypatch.setattr(connection, "submit", noted)
        request = running.request(["a picture", picture(random.Random(1))])
        request = msgspec.structs.replace(request, slo=Slo("x", 9.0, 0.5), priority=2)
        await running.tokens(request)
    headers = [job.header for job in sent]
    assert len(headers) == 3
    for header in headers:
        assert 0.0 < header.slo_ttft_s <= 9.0
        assert (header.slo_tpot_s, header.priority) == (0.5, 2)
    later = {header.id.rpartition("/")[2]: header.later_s for header in headers}
    assert later["encode0"] > 0.0 < later["prefill"]
    assert later["decode"] == 0.0
