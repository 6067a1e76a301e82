"""One of several processes that run steps at the same time: ``python -m simulator.profile S``.

Reads a configuration from stdin and says when it is ready. For each line that it reads then, it
runs steps and an interpreter's work for S seconds and says how much of the processor a step and a
beat took in the median.
"""

import sys
import time
from statistics import median

import msgspec

from cluster.host import InstanceSpec
from cluster.loop import run_loop
from cluster.machine import ThisMachine
from simulator.profile.grid import Limits, Shape
from simulator.profile.steps import Bench
from simulator.profile.tempo import beat
from triptych.core.config import Config
from triptych.core.ids import InstanceId
from triptych.core.lifecycle import Stage

BEATS = 10
"""Behind each step: about as long."""


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
        bench, limits = Bench(config, card, executors), Limits.of(config, card)
        length = min(64, limits.chunk)
        shape = Shape(chunks=((0, length),), contexts=(min(64, limits.positions // 2),) * 4)
        bench.run(shape)
        _say("ready")
        while source.readline():
            _say(" ".join(map(str, _taken(bench, shape, seconds))))
    finally:
        executors.close()


def _say(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


def _taken(bench: Bench, shape: Shape, seconds: float) -> tuple[float, float]:
    """Of a prompt's chunk and the decodes of a few sequences together, and of a beat."""
    steps: list[float] = []
    beats: list[float] = []
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s or not steps:
        steps.append(bench.run(shape))
        beats += [beat() for _ in range(BEATS)]
    return median(steps), median(beats)


if __name__ == "__main__":
    run_loop(_main(float(sys.argv[1])))
