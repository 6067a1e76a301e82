"""Instances in other processes: same tokens, kills survived, nothing left behind.

Every test here runs once with plain processes and once with Ray actors.
"""

import asyncio
import os
import signal
import time
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cluster import ray_environment
from cluster.build import start_cluster
from cluster.host import InstanceSpec
from tests.patience import PATIENCE_S
from tests.services.driver import Question, driving, idle, rng_of
from tests.services.test_topologies import config
from tests.signals import stop
from triptych.core.errors import ConfigError, InstanceLost, TriptychError, Unavailable
from triptych.core.lifecycle import InstanceState, Stage

BACKENDS = ["process", pytest.param("ray", marks=pytest.mark.ray)]
MOSTLY_PROCESSES = [
    "process", pytest.param("ray", marks=[pytest.mark.ray, pytest.mark.slow, pytest.mark.matrix])
]  # fmt: skip
"""Where the flow's tests do the same to Ray's actors: the whole product has both."""


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def scratch():
    return set(Path("/tmp").glob(f"triptych-ray-{os.getpid()}-*"))


@asynccontextmanager
async def running(topology, backend, *more, transport="auto"):
    """A cluster; afterwards every process that it ever had is gone, and Ray's directory."""
    told, pids = [], set()
    settings = config(topology, transport, f'cluster.backend="{backend}"', *more)
    cluster = await start_cluster(settings, told.append)
    cluster.on_change(lambda: pids.update(cluster.pids().values()))
    pids.update(cluster.pids().values())
    cluster.told = told
    try:
        yield cluster
    finally:
        pids.update(cluster.pids().values())
        await cluster.close()
    assert pids
    assert [pid for pid in pids - {os.getpid()} if is_alive(pid)] == []
    assert scratch() == set()


async def whole(cluster, without="", within_s=PATIENCE_S):
    """Wait until every place is filled, by other incarnations than ``without``."""
    async with asyncio.timeout(within_s):
        while not cluster.is_whole or without in cluster.pids():
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("backend", MOSTLY_PROCESSES)
async def test_the_tokens_are_the_oracles(backend):
    rng = rng_of(backend)
    async with running("E1,P1,D1", backend) as cluster, driving(cluster) as driver:
        questions = [Question(rng, rng.randint(0, 3), max_tokens=rng.randint(1, 9))
                     for _ in range(9)]  # fmt: skip
        answers = await asyncio.gather(*map(driver.ask, questions))
        assert list(answers) == [question.answer() for question in questions]
        census = await idle(cluster)
        assert len(census) == 3
        assert len(set(cluster.pids().values())) == 3
        words = [view.description.id for view in cluster.view().instances]
        assert words == ["decode-0@0", "encode-0@0", "prefill-0@0"]
        assert any("ready after" in line for line in cluster.told)
        assert all(
            view.description.memory_bytes["embedding"] == 0
            for view in cluster.view().serving(Stage.DECODE)
        )


@pytest.mark.parametrize("backend", MOSTLY_PROCESSES)
async def test_kill_9_of_each_instance_under_load(backend):
    """Whoever loses an instance hears of it at once; nobody gets a wrong token; it is replaced,
    under another name, and the others hold nothing of the lost work."""
    rng = rng_of("kill", backend)
    wrong, lost = [], 0

    async def load(driver, stop):
        nonlocal lost
        while not stop.is_set():
            question = Question(rng, rng.randint(0, 2), max_tokens=60)
            try:
                async with asyncio.timeout(PATIENCE_S):
                    answer = await driver.ask(question)
            except (KeyError, IndexError, ZeroDivisionError):
                await asyncio.sleep(0.05)  # no instance of a stage right now
            except TriptychError:
                lost += 1
                await asyncio.sleep(0.05)
            else:
                wrong.extend([question] if answer != question.answer() else [])

    async with running("E1,P1,D1", backend) as cluster:
        for word in ("encode", "prefill", "decode"):
            async with driving(cluster) as driver:
                stop = asyncio.Event()
                loads = [asyncio.create_task(load(driver, stop)) for _ in range(4)]
                await asyncio.sleep(0.3 + rng.random() / 4)
                victim = next(name for name in cluster.pids() if name.startswith(word))
                os.kill(cluster.pids()[victim], signal.SIGKILL)
                async with asyncio.timeout(PATIENCE_S):
                    while victim not in driver.lost:
                        await asyncio.sleep(0.01)
                assert isinstance(driver.lost[victim], InstanceLost)
                await whole(cluster, without=victim)
                stop.set()
                await asyncio.gather(*loads)
            await idle(cluster)
        async with driving(cluster) as driver:
            question = Question(rng, 2)
            assert await driver.ask(question) == question.answer()
        assert sorted(cluster.pids()) == ["decode-0@1", "encode-0@1", "prefill-0@1"]
    assert wrong == []
    assert lost > 0


async def test_a_hung_instance_is_fenced_off_and_replaced():
    """SIGSTOP: no broken connection tells, only silence does."""
    async with running("E1,P1,D1", "process", "cluster.timeout_s=3.0") as cluster:
        async with driving(cluster) as driver:
            pid = cluster.pids()["prefill-0@0"]
            stop(pid)
            async with asyncio.timeout(PATIENCE_S):
                while "prefill-0@1" not in cluster.pids():
                    await asyncio.sleep(0.05)
            assert not is_alive(pid)
            assert isinstance(driver.lost["prefill-0@0"], InstanceLost)
        await whole(cluster)
        async with driving(cluster) as driver:
            question = Question(rng_of("hung"), 1)
            assert await driver.ask(question) == question.answer()


async def test_a_hung_instance_does_not_hold_a_stop():
    """It cannot drain, however long it may: it is silent, and is killed."""
    more = ("cluster.timeout_s=3.0", "cluster.heartbeat_s=0.2", f"cluster.drain_s={9 * PATIENCE_S}")
    async with running("EPD1", "process", *more) as cluster:
        (pid,) = cluster.pids().values()
        stop(pid)
        async with asyncio.timeout(PATIENCE_S):
            await cluster.close()
        assert not is_alive(pid)


async def test_a_role_may_yield_to_others():
    more = ('cluster.roles={D = ["model.nice=7", "model.decode_gap_s=0.002"]}',)
    async with running("E1,P1,D1", "process", *more) as cluster, driving(cluster) as driver:
        question = Question(rng_of("nice"), 1)
        assert await driver.ask(question) == question.answer()
        found = {name: threads_of(pid) for name, pid in cluster.pids().items()}
        loops = [f"/proc/{pid}/maps" for pid in cluster.pids().values()]
        assert all("/uvloop/" in Path(each).read_text() for each in loops)
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    assert set(found["encode-0@0"]) == set(found["prefill-0@0"]) == {ours}
    assert set(found["decode-0@0"]) == {ours + 7}


def threads_of(pid):
    """The niceness of each thread."""
    return [os.getpriority(os.PRIO_PROCESS, int(name)) for name in os.listdir(f"/proc/{pid}/task")]


async def test_a_standstill_of_the_router_costs_no_instance():
    """Ctrl-Z and fg, a paused machine: everybody else was well all the time."""
    more = ("cluster.timeout_s=3.0", "cluster.heartbeat_s=0.2")
    async with running("E1,PD1", "process", *more) as cluster, driving(cluster) as driver:
        await asyncio.sleep(0.3)
        time.sleep(4.0)
        question = Question(rng_of("still"), 1)
        assert await driver.ask(question) == question.answer()
        await asyncio.sleep(3.5)
        assert driver.lost == {}
        assert sorted(cluster.pids()) == ["encode-0@0", "pd-0@0"]


async def test_what_a_child_prints_is_not_taken_for_its_address(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(
        "for line in ('', 'a library says hello', '7', '[', 'x' * 200_000, 'the last'):\n"
        "    print(line, flush=True)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    async with running("EPD1", "process") as cluster, driving(cluster) as driver:
        (pid,) = cluster.pids().values()
        assert os.readlink(f"/proc/{pid}/fd/1") == os.readlink(f"/proc/{pid}/fd/2")
        question = Question(rng_of("chatty"), 1)
        assert await driver.ask(question) == question.answer()


@pytest.mark.ray
async def test_errors_of_ray_itself_are_ours():
    settings = config("EPD1", "auto", 'cluster.backend="ray"')
    ray_environment.prepare(settings)
    import ray

    from cluster.ray_actors import RayHost

    host = await RayHost.open(settings)
    try:
        spec = InstanceSpec("epd-0@0", tuple(Stage), settings, b"x" * 32)
        host._gpus = -1.0  # Ray refuses it with a ValueError
        with pytest.raises(Unavailable, match="epd-0@0"):
            await host.start(spec)
        host._gpus = 0.0
        hosted = await host.start(spec)
        await host.close()
        await hosted.kill()
        assert not ray.is_initialized()  # a word to Ray would have started another one
        assert not is_alive(hosted.pid)
        await hosted.instance.close()
    finally:
        await host.close()
    assert scratch() == set()


async def test_a_suspect_is_replaced():
    async with running("EPD1", "local") as cluster:
        cluster.suspect("epd-0@0")
        async with asyncio.timeout(PATIENCE_S):
            while "epd-0@1" not in cluster.pids():
                await asyncio.sleep(0.01)
        with pytest.raises(KeyError):
            cluster.instance("epd-0@0")


@pytest.mark.parametrize("backend", ["local", "process"])
async def test_a_start_that_cannot_succeed_leaves_nothing(backend):
    settings = config("E1,P1,D1", "auto", f'cluster.backend="{backend}"', 'model.path="/nowhere"')
    with pytest.raises(TriptychError) as caught:
        await start_cluster(settings)
    assert backend != "local" or isinstance(caught.value, ConfigError)


@pytest.mark.parametrize("backend", MOSTLY_PROCESSES)
async def test_a_stop_waits_for_work_in_flight_and_for_its_readers(backend):
    patient, slow = f"cluster.drain_s={PATIENCE_S}", {"pause_s": 0.003}
    async with running("EPD1", backend, patient) as cluster, driving(cluster, **slow) as driver:
        question = Question(rng_of("drain"), 1, max_tokens=900)
        asking = asyncio.create_task(driver.ask(question))
        async with asyncio.timeout(PATIENCE_S):
            while not any(
                held.kind == "kv_block" for census in await cluster.census() for held in census.held
            ):
                await asyncio.sleep(0.001)
        states = []
        cluster.on_change(lambda: states.extend(view.state for view in cluster.view().instances))
        await cluster.close()
        assert await asking == question.answer()
        assert InstanceState.DRAINING in states


async def test_children_die_with_their_parent():
    """A parent that is killed takes its instances along."""
    program = (
        "import asyncio, sys\n"
        "from cluster.build import start_cluster\n"
        "from tests.services.test_topologies import config\n"
        "async def main():\n"
        "    c = await start_cluster(config('E1,PD1', 'auto', 'cluster.backend=\"process\"'))\n"
        "    print(*c.pids().values(), flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    import sys

    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE
    )
    pids = [int(word) for word in (await parent.stdout.readline()).split()]
    assert len(pids) == 2
    parent.kill()
    await parent.wait()
    async with asyncio.timeout(PATIENCE_S):
        while any(map(is_alive, pids)):
            await asyncio.sleep(0.02)
