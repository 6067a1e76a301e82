import asyncio

import pytest

from cluster.loop import run_loop


def test_it_is_libuvs_and_gone_afterwards():
    async def work():
        loop = asyncio.get_running_loop()
        await asyncio.sleep(0)
        return loop

    loop = run_loop(work())
    assert type(loop).__module__ == "uvloop"
    assert loop.is_closed()


def test_what_is_raised_comes_out():
    async def work():
        raise KeyError("lost")

    with pytest.raises(KeyError, match="lost"):
        run_loop(work())
