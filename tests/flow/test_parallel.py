"""Ranks in processes on the server's own path, over one memory or with their own: any degree per
stage, real signals, nothing left."""

import asyncio
import os
import signal
from collections.abc import Sequence

import psutil
import pytest

from tests.checkpoints import DEMO
from tests.flow.asked import questions
from tests.flow.harness import Flow, config, flow
from tests.patience import PATIENCE_S
from triptych.core.request import Request

END = 686
"""The demo model's end of an answer."""
TWO = '["model.tensor_parallel=2", "model.parallel=PARALLEL"]'
SHAPES = {
    "E1,P2,D1": "{P = TWO}",
    "E1,P1,D2": "{D = TWO}",
    "E1,PD1": "{PD = TWO}",
    "EPD1": "{EPD = TWO}",
}


def cluster(topology: str, own: str, backend: str = "local", parallel: str = "processes"):
    roles = f"cluster.roles={own.replace('TWO', TWO).replace('PARALLEL', parallel)}"
    dtype = 'model.dtype="float32"'
    small = ("cache.kv_blocks=256", "cache.embedding_blocks=128", "engine.chunk_tokens=48")
    return config(topology, roles, dtype, *small, model=str(DEMO), backend=backend)


def asked(running: Flow) -> list[Request]:
    return [running.request(one, max_tokens=24, eos=(END,)) for one in questions(16)]


async def answers(running: Flow) -> list[list[int]]:
    return await asyncio.gather(*(running.tokens(request) for request in asked(running)))


@pytest.fixture(scope="module")
def plain() -> list[list[int]]:
    async def run() -> list[list[int]]:
        async with flow(cluster("E1,P1,D1", "{}")) as running:
            return await answers(running)

    return asyncio.run(run())


@pytest.mark.parametrize("parallel", ["processes", "devices"])
@pytest.mark.parametrize("topology", SHAPES)
async def test_every_stage_may_have_its_own_degree(topology: str, parallel: str, plain) -> None:
    async with flow(cluster(topology, SHAPES[topology], parallel=parallel)) as running:
        assert await answers(running) == plain
        assert await answers(running) == plain, "and with prefix hits"


def followers(pid: int) -> list[psutil.Process]:
    """Processes of the other ranks of the instance whose process is ``pid``."""
    children = psutil.Process(pid).children()
    return [child for child in children if "triptych.executor.follower" in child.cmdline()]


def pids(running: Flow) -> dict[str, int]:
    now = running.core.dispatcher.view().instances
    return {view.description.id: view.description.pid for view in now}


async def replaced(running: Flow, name: str) -> None:
    """Wait until ``name``, of four, is no more and the pool is whole again."""
    async with asyncio.timeout(PATIENCE_S):
        while name in pids(running) or len(pids(running)) < 4:
            await asyncio.sleep(0.05)


async def end(processes: Sequence[psutil.Process]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while any(map(psutil.Process.is_running, processes)):
            await asyncio.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["processes", "devices"])
async def test_who_loses_a_rank_is_replaced_and_no_request_is_lost(parallel: str, plain) -> None:
    """A follower is killed under load, one while nothing is to be done, and a leader."""
    seen: list[psutil.Process] = []
    async with flow(cluster("E1,P2,D1", "{P = TWO, D = TWO}", "process", parallel)) as running:
        await replaced(running, "nobody")
        for name, pid in pids(running).items():
            found = followers(pid)
            assert len(found) == (0 if name.startswith("encode") else 1)
            seen += found
        first, second = sorted(name for name in pids(running) if name.startswith("prefill"))
        load = asyncio.create_task(answers(running))
        await asyncio.sleep(0.3)
        os.kill(followers(pids(running)[first])[0].pid, signal.SIGKILL)
        assert await load == plain
        await replaced(running, first)
        await running.assert_idle()
        idle = next(name for name in pids(running) if name.startswith("decode"))
        os.kill(followers(pids(running)[idle])[0].pid, signal.SIGKILL)
        await replaced(running, idle)
        orphans = followers(pids(running)[second])
        os.kill(pids(running)[second], signal.SIGKILL)
        await end(orphans)
        await replaced(running, second)
        assert await answers(running) == plain
        seen += [one for pid in pids(running).values() for one in followers(pid)]
    await end(seen)
