"""How much faster several cores are than one, when the same steps run on each.

Threads of one core, shared caches and memory make two cores less than twice one. Starts processes
of its own (``python -m simulator.profile``); knows the configuration they get and two lines of
text.
"""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE

from cluster.host import thread_environment
from simulator.profile.steps import Say
from triptych.core.config import Config, dump
from triptych.core.errors import Unavailable

MOST = 8
"""Processes at once; further cores are taken to gain as much each as the last one."""


async def speeds(config: Config, seconds: float, say: Say) -> tuple[float, ...]:
    """Work a second of all cores together with 1, 2, ... of them busy, in that of one."""
    count = len(os.sched_getaffinity(0))
    steps_s = []
    for busy in range(1, min(count, MOST) + 1):
        say(f"{busy} of {count} cores at work", (busy - 1) / min(count, MOST))
        steps_s.append(await _step_s(config, busy, seconds))
    found = [1.0]
    for busy, step_s in enumerate(steps_s[1:], start=2):
        fastest = found[-1] + 1.0
        found.append(min(fastest, max(found[-1], busy * steps_s[0] / step_s)))
    gain = found[-1] - found[-2] if len(found) > 1 else 1.0
    return (*found, *(found[-1] + gain * more for more in range(1, count - len(found) + 1)))


async def _step_s(config: Config, count: int, seconds: float) -> float:
    """Processor seconds of a step while ``count`` processes run it."""
    environment = {**os.environ, **thread_environment(config)}
    processes = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "simulator.profile", str(seconds)),
            stdin=PIPE,
            stdout=PIPE,
            env=environment,
        )
        for _ in range(count)
    ]
    try:
        for process in processes:
            assert process.stdin is not None, "a pipe"
            body = dump(config)
            process.stdin.write(len(body).to_bytes(4, "little") + body)
        for process in processes:
            await _line(process)
        for process in processes:
            assert process.stdin is not None, "a pipe"
            process.stdin.write(b"\n")
        taken = [float(await _line(process)) for process in processes]
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()
            await process.wait()
    return sum(taken) / count


async def _line(process: asyncio.subprocess.Process) -> bytes:
    assert process.stdout is not None, "a pipe"
    line = await process.stdout.readline()
    if not line:
        raise Unavailable("profile: a process that runs steps ended; its words are above")
    return line
