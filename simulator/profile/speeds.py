"""How much faster several cores are than one, when the same steps run on each.

Threads of one core, shared caches and memory make two cores less than twice one. Starts processes
of its own (``python -m simulator.profile``); knows the configuration they get and lines of text.
"""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE
from collections.abc import Sequence
from statistics import fmean, median

from cluster.host import thread_environment
from simulator.profile.steps import Say
from triptych.core.config import Config, dump
from triptych.core.errors import Unavailable

MOST = 8
"""Processes at once; further cores are taken to gain as much each as the last one."""
ROUNDS = 15
"""Of comparing: what the host does to one of them does not count."""


async def speeds(config: Config, seconds: float, say: Say) -> tuple[float, ...]:
    """Work a second of all cores together with 1, 2, ... of them busy, in that of one: the median
    of ``ROUNDS`` comparisons in turns, ``seconds`` in all for each number of cores."""
    count = len(os.sched_getaffinity(0))
    most = min(count, MOST)
    environment = {**os.environ, **thread_environment(config)}
    processes: list[asyncio.subprocess.Process] = []
    try:
        for _ in range(most):
            words = sys.executable, "-m", "simulator.profile", str(seconds / ROUNDS)
            processes.append(
                await asyncio.create_subprocess_exec(
                    *words, stdin=PIPE, stdout=PIPE, env=environment
                )
            )
        for process in processes:
            body = dump(config)
            _write(process, len(body).to_bytes(4, "little") + body)
        for process in processes:
            await _line(process)
        rounds = []
        for number in range(ROUNDS):
            say(f"1 to {most} of {count} cores at work", number / ROUNDS)
            rounds.append([await _together(processes[:busy]) for busy in range(1, most + 1)])
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()
            await process.wait()
    return _speeds(rounds, count)


def _speeds(rounds: list[list[tuple[float, float]]], count: int) -> tuple[float, ...]:
    """Of ``count`` cores, from what a step and a beat take beside others; a server's work is both,
    half and half. More processes do not do less than fewer; nor does one more do more than one
    core."""
    found = [1.0]
    for index in range(1, len(rounds[0])):
        slower = median(
            fmean(now / alone for now, alone in zip(one[index], one[0], strict=True))
            for one in rounds
        )
        found.append(min(found[-1] + 1.0, max(found[-1], (index + 1) / slower)))
    gain = found[-1] - found[-2] if len(found) > 1 else 1.0
    return (*found, *(found[-1] + gain * more for more in range(1, count - len(found) + 1)))


async def _together(processes: Sequence[asyncio.subprocess.Process]) -> tuple[float, float]:
    """Processor seconds of a step and of a beat while these run them."""
    for process in processes:
        _write(process, b"\n")
    lines = [(await _line(process)).split() for process in processes]
    return fmean(float(step) for step, _ in lines), fmean(float(beat) for _, beat in lines)


def _write(process: asyncio.subprocess.Process, data: bytes) -> None:
    assert process.stdin is not None, "a pipe"
    process.stdin.write(data)


async def _line(process: asyncio.subprocess.Process) -> bytes:
    assert process.stdout is not None, "a pipe"
    line = await process.stdout.readline()
    if not line:
        raise Unavailable("profile: a process that runs steps ended; its words are above")
    return line
