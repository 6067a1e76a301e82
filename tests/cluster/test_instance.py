"""One instance by itself: what it refuses, how it breaks, what it gives back."""

import asyncio
import os
import sys
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from cluster.build import start_cluster
from cluster.epochs import Epochs
from cluster.host import InstanceSpec
from cluster.instance_build import build_instance
from cluster.node import Node
from tests.patience import PATIENCE_S
from tests.services.driver import Question, driving, idle, rng_of
from tests.services.test_topologies import config
from triptych.core.errors import Cancelled, InvariantBroken, Unavailable
from triptych.core.handoff import JobHeader
from triptych.core.lifecycle import Stage
from triptych.engine.language import LanguageEngine

SPEC = InstanceSpec("epd-0@0", tuple(Stage), config("EPD1"), b"secret")


def test_a_late_attempt_is_refused():
    epochs = Epochs()
    for epoch in (0, 1, 1, 3):
        epochs.check(JobHeader(f"req-1/0/{epoch}/decode", "s", epoch, 1.0))
    epochs.check(JobHeader("req-1/1/0/decode", "s", 0, 1.0))
    with pytest.raises(Cancelled):
        epochs.check(JobHeader("req-1/0/2/prefill", "s", 2, 1.0))


@pytest.mark.usefixtures("no_leak")
async def test_an_engine_that_breaks_its_invariants_is_replaced(monkeypatch):
    """Its sessions end, nobody waits for it, and the next incarnation answers."""
    plan, calls = LanguageEngine.plan, []

    def broken(self, now):
        calls.append(now)
        if len(calls) == 6:
            raise InvariantBroken("a test broke it")
        return plan(self, now)

    async with await start_cluster(config("E1,PD1")) as cluster:
        monkeypatch.setattr(LanguageEngine, "plan", broken)
        async with driving(cluster) as driver:
            with pytest.raises(Unavailable):
                await driver.ask(Question(rng_of("broken"), 1, max_tokens=50))
            assert set(driver.lost) == {"pd-0@0"}
        async with asyncio.timeout(PATIENCE_S):
            while "pd-0@1" not in cluster.pids():
                await asyncio.sleep(0.02)
        async with driving(cluster) as driver:
            question = Question(rng_of("next"), 1)
            assert await driver.ask(question) == question.answer()
            await idle(cluster)


@pytest.mark.usefixtures("no_leak")
@pytest.mark.parametrize(
    ("role", "is_shared"),
    [(tuple(Stage), True), ((Stage.ENCODE,), False), ((Stage.DECODE,), False)],
)
async def test_threads_of_two_engines_take_pythons_lock_in_short_turns(role, is_shared):
    before_s = sys.getswitchinterval()
    try:
        node = await Node.start(msgspec.structs.replace(SPEC, role=role))
        await node.close(0.0)
        assert (sys.getswitchinterval() < before_s) == is_shared
    finally:
        sys.setswitchinterval(before_s)


@pytest.mark.usefixtures("no_leak")
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a niceness for each thread")
@pytest.mark.parametrize(("role", "count"), [(tuple(Stage), 1), ((Stage.ENCODE,), 0)])
async def test_one_thread_yields_to_the_others_where_pictures_share_the_cores(role, count):
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    settings = config("EPD1", "auto", 'model.path="examples/demo_model"')
    instance = await build_instance(InstanceSpec("epd-0@0", role, settings, b"secret"))
    try:
        async with asyncio.timeout(PATIENCE_S):
            while num_nicer(ours) != count:  # the thread says so itself, when it begins
                await asyncio.sleep(0.01)
    finally:
        await instance.close()


def num_nicer(ours):
    found = 0
    for name in os.listdir("/proc/self/task"):
        with suppress(ProcessLookupError):
            found += os.getpriority(os.PRIO_PROCESS, int(name)) > ours
    return found


@pytest.mark.usefixtures("no_leak")
async def test_idle_checks_find_a_broken_invariant(monkeypatch):
    def broken(self):
        raise InvariantBroken("a block is lost")

    monkeypatch.setattr(LanguageEngine, "check", broken)
    instance = await build_instance(SPEC)
    instance.touch()
    async with asyncio.timeout(PATIENCE_S):
        assert await instance.wait() == "a block is lost"
    with pytest.raises(Unavailable):
        await anext(instance.open("s"))
    await instance.close()


@pytest.mark.usefixtures("no_leak")
async def test_decoding_children_start_with_the_instance():
    """Nobody waits for them: they are there when the first picture comes."""
    instance = await build_instance(SPEC)
    async with asyncio.timeout(PATIENCE_S):
        while num_decoders() != SPEC.config.limits.decode_workers:
            await asyncio.sleep(0.01)
    await instance.close()
    assert num_decoders() == 0
    await (await build_instance(SPEC)).close()
    await asyncio.sleep(0)
    assert num_decoders() == 0


def num_decoders():
    pids = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids]
    return sum(b"decode_child" in command for command in commands)


@pytest.mark.usefixtures("no_leak")
async def test_close_under_load_frees_everything():
    cluster = await start_cluster(config("E2,P1,D2"))
    async with driving(cluster) as driver:
        rng = rng_of("close")
        asking = [
            asyncio.create_task(driver.ask(Question(rng, 2, max_tokens=900))) for _ in range(6)
        ]
        await asyncio.sleep(0.2)
        await cluster.close(0.0)
        results = await asyncio.gather(*asking, return_exceptions=True)
        assert all(isinstance(result, Exception) for result in results)


@pytest.mark.usefixtures("no_leak")
async def test_a_start_that_is_cancelled_gives_everything_back():
    for steps in range(1, 9):
        starting = asyncio.create_task(start_cluster(config("E1,P1,D1")))
        for _ in range(steps):
            await asyncio.sleep(0)
        if not starting.cancel():  # it was quicker than so many turns of the loop
            await (await starting).close()
            continue
        with pytest.raises(asyncio.CancelledError):
            await starting
