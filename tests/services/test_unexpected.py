"""What nobody planned for, amid a transfer: its job ends at once, and nothing is left behind."""

import asyncio

import pytest

from cluster.build import start_cluster
from kvtransfer.receiver import Receiver
from tests.patience import PATIENCE_S
from tests.services.driver import Question, driving, idle, rng_of
from tests.services.test_topologies import config
from triptych.core.errors import InvariantBroken
from triptych.inputs.decode import DecoderPool


async def fails_once(question):
    """The first time it is asked, and leaves room for the second."""
    async with await start_cluster(config("E1,P1,D1")) as cluster, driving(cluster) as driver:
        async with asyncio.timeout(PATIENCE_S):
            with pytest.raises(InvariantBroken):
                await driver.ask(question)
        assert await driver.ask(question) == question.answer()
        await idle(cluster)


@pytest.mark.usefixtures("no_leak")
@pytest.mark.parametrize("kind", ["kv", "embedding"])
async def test_a_job_does_not_wait_for_its_deadline(kind, monkeypatch):
    fetch, broken = Receiver.fetch, [True]

    async def breaking(self, ref, memory, *more):
        if broken and memory.layout.kind == kind:
            broken.pop()
            raise OSError("no memory")
        return await fetch(self, ref, memory, *more)

    monkeypatch.setattr(Receiver, "fetch", breaking)
    await fails_once(Question(rng_of(kind), 2))


@pytest.mark.usefixtures("no_leak")
async def test_a_picture_that_breaks_its_decoder_gives_its_place_back(monkeypatch):
    decode, broken = DecoderPool.decode, [True]

    async def breaking(self, *about):
        if broken:
            broken.pop()
            raise MemoryError
        return await decode(self, *about)

    monkeypatch.setattr(DecoderPool, "decode", breaking)
    await fails_once(Question(rng_of("decoder"), 1))
