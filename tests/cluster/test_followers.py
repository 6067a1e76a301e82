"""Processes that compute for an instance are watched, whether or not anybody asks them."""

import asyncio
import signal
import subprocess

import pytest

from cluster.followers import watch
from tests.patience import PATIENCE_S
from triptych.core.errors import InstanceLost


@pytest.mark.usefixtures("no_leak")
@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGTERM])
async def test_the_first_end_is_seen(blow: signal.Signals):
    children = [subprocess.Popen(["sleep", "1000"]) for _ in range(3)]
    told: list[str] = []
    watching = asyncio.create_task(
        watch([child.pid for child in children], lambda: told.append("abandoned"))
    )
    await asyncio.sleep(0.05)
    assert not watching.done()
    children[1].send_signal(blow)
    with pytest.raises(InstanceLost, match=f"its process {children[1].pid} ended"):
        async with asyncio.timeout(PATIENCE_S):
            await watching
    assert told == ["abandoned"]
    for child in children:
        child.kill()
        child.wait()


@pytest.mark.usefixtures("no_leak")
async def test_who_is_sent_home_leaves_nothing():
    child = subprocess.Popen(["sleep", "1000"])
    watching = asyncio.create_task(watch([child.pid], lambda: pytest.fail("nobody ended")))
    await asyncio.sleep(0)
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching
    child.kill()
    child.wait()
    await asyncio.sleep(0)
