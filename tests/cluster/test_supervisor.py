"""The supervisor over hosts that fail in ways nobody planned for."""

import asyncio

import pytest

from cluster.directory import Directory
from cluster.local import LocalHost
from cluster.supervisor import Supervisor
from tests.patience import PATIENCE_S
from tests.services.test_topologies import config
from triptych.core.errors import ConfigError, Unavailable
from triptych.core.lifecycle import Stage


class Faulty(LocalHost):
    """Real instances, except where ``faults`` has an error for the next start."""

    def __init__(self, *faults):
        super().__init__("auto")
        self.faults = list(faults)
        self.hosted = []

    async def start(self, spec):
        fault = self.faults.pop(0) if self.faults else None
        if fault is not None:
            raise fault
        self.hosted.append(await super().start(spec))
        return self.hosted[-1]


def supervisor_of(host, topology="EPD1", on_progress=lambda text: None):
    return Supervisor(host, config(topology), b"x" * 32, Directory(), on_progress)


async def present(supervisor, *names):
    async with asyncio.timeout(PATIENCE_S):
        while sorted(supervisor.pids()) != sorted(names):
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (OSError(12, "Cannot allocate memory"), Unavailable),
        (RuntimeError("a bug"), Unavailable),
        (ConfigError("model.path: nothing there"), ConfigError),
    ],
)
async def test_a_start_that_fails_says_so(fault, kind):
    host = Faulty(None, fault)
    supervisor = supervisor_of(host, "E1,PD1")
    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(kind, match=str(fault.args[-1])):
            await supervisor.start()
    assert supervisor.pids() == {}


@pytest.mark.parametrize("fault", [OSError(24, "Too many open files"), RuntimeError("a bug")])
@pytest.mark.usefixtures("no_leak")
async def test_a_restart_that_fails_is_tried_again(fault):
    supervisor = supervisor_of(Faulty(None, fault, fault))
    await supervisor.start()
    await supervisor.kill("epd-0@0")
    await present(supervisor, "epd-0@3")
    await supervisor.close(0.0)


async def test_a_fault_while_it_serves_is_no_end_of_the_slot():
    """Nothing of the incarnation is left, and the next one takes its place."""
    told = []

    def tell(text):
        told.append(text)
        if "ready" in text and "@1" in text:
            raise BrokenPipeError

    host = Faulty()
    supervisor = supervisor_of(host, on_progress=tell)
    await supervisor.start()
    await supervisor.kill("epd-0@0")
    await present(supervisor, "epd-0@2")
    assert [line for line in told if "starting" in line] == [
        f"epd-0@{number}: starting" for number in range(3)
    ]
    with pytest.raises(Unavailable):
        host.hosted[1].instance.open("s")
    await supervisor.close(0.0)


@pytest.mark.usefixtures("no_leak")
async def test_one_stop_that_fails_skips_no_other(caplog):
    host = Faulty()
    supervisor = supervisor_of(host, "E1,P1,D1")
    await supervisor.start()
    stopped = []

    async def fail(drain_s):
        raise RuntimeError("it cannot stop")

    def noting(hosted):
        stop = hosted.stop

        async def noted(drain_s):
            await asyncio.sleep(0.05)
            await stop(drain_s)
            stopped.append(hosted)

        return noted

    host.hosted[0].stop = fail
    for hosted in host.hosted[1:]:
        hosted.stop = noting(hosted)
    await supervisor.close(1.0)
    assert len(stopped) == 2
    assert "it cannot stop" in caplog.text
    for hosted in host.hosted:
        with pytest.raises(Unavailable):
            hosted.instance.open("s")
    assert supervisor.pids() == {}


@pytest.mark.usefixtures("no_leak")
async def test_closing_ends_who_waits_for_another_role():
    host = Faulty()
    supervisor = supervisor_of(host, "E1,P1,D2")
    await supervisor.start()

    async def never(drain_s):
        await asyncio.Event().wait()

    stops = [hosted.stop for hosted in host.hosted]  # which of them is which, starts decide
    for hosted in host.hosted:
        hosted.stop = never
    assigning = asyncio.create_task(supervisor.assign("decode-0", frozenset({Stage.PREFILL})))
    await asyncio.sleep(0.05)
    assert not assigning.done()
    for hosted, stop in zip(host.hosted, stops, strict=True):
        hosted.stop = stop
    await supervisor.close(0.0)
    with pytest.raises(Unavailable, match="the cluster is closing"):
        await assigning
    assert supervisor.pids() == {}
