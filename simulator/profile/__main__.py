"""One of several processes that run steps at the same time: ``python -m simulator.profile S``.

Reads a configuration from stdin, says when it is ready, waits for a line, runs steps for S seconds
and says how much of the processor one took in the median.
"""

import asyncio
import sys
import time
from statistics import median

import msgspec

from cluster.host import InstanceSpec
from cluster.machine import ThisMachine
from simulator.profile.grid import Limits, Shape
from simulator.profile.steps import Bench
from triptych.core.config import Config
from triptych.core.ids import InstanceId
from triptych.core.lifecycle import Stage


async def _main(seconds: float) -> None:
    source = sys.stdin.buffer
    config = msgspec.msgpack.decode(
        source.read(int.from_bytes(source.read(4), "little")), type=Config
    )
    machine = ThisMachine()
    card = machine.card(config)
    role = (Stage.PREFILL, Stage.DECODE)
    spec = InstanceSpec(InstanceId("profile-0@1"), role, config, b"")
    executors = await machine.executors(spec, card)
    try:
        taken = _taken(Bench(config, card, executors), Limits.of(config, card), seconds)
    finally:
        executors.close()
    sys.stdout.write(f"{taken}\n")


def _taken(bench: Bench, limits: Limits, seconds: float) -> float:
    """Of a prompt's chunk and the decodes of a few sequences together."""
    length = min(64, limits.chunk)
    shape = Shape(chunks=((0, length),), contexts=(min(64, limits.positions // 2),) * 4)
    bench.run(shape)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.buffer.readline()
    taken: list[float] = []
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s or not taken:
        taken.append(bench.run(shape))
    return median(taken)


if __name__ == "__main__":
    asyncio.run(_main(float(sys.argv[1])))
