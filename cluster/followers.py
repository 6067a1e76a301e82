"""Watches processes that compute for an instance without hosting one. Knows their ids only."""

import asyncio
import os
from collections.abc import Callable, Sequence

from triptych.core.errors import InstanceLost


async def watch(pids: Sequence[int], abandon: Callable[[], None]) -> None:
    """Raises InstanceLost when one of our children ``pids`` ends, though nobody asked it for
    anything; ``abandon`` is called before, so that no thread of ours waits for it for ever."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[int] = loop.create_future()

    def end(pid: int) -> None:
        if not ended.done():
            ended.set_result(pid)

    numbers: list[int] = []
    try:
        for pid in pids:
            numbers.append(os.pidfd_open(pid))
            loop.add_reader(numbers[-1], end, pid)
        pid = await ended
        abandon()
        raise InstanceLost(f"its process {pid} ended")
    finally:
        for number in numbers:
            loop.remove_reader(number)
            os.close(number)
