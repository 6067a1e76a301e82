"""A plain process that hosts one instance: ``python -m cluster``, started by ``cluster.process``.

Reads its specification (msgpack) from stdin, prints where it serves as one line of JSON, drains on
SIGTERM, ends when its instance breaks, and is killed by the kernel when its parent dies.
"""

import asyncio
import ctypes
import os
import signal
import sys

import msgspec

from cluster.host import InstanceSpec
from cluster.loop import run_loop
from cluster.node import Node
from cluster.remote import Served
from triptych.core import log

_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Host the instance until it is told to stop; 1 if the instance broke."""
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    spec = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=InstanceSpec)
    if os.getppid() != parent:
        return 1
    log.setup(spec.config.log, spec.id)
    # Stdout is for our one line, which ends it; whatever a library prints goes to stderr.
    told = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return run_loop(_host(spec, told))


async def _host(spec: InstanceSpec, told: int) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGINT, lambda: None)
    node = await Node.start(spec)
    served = Served(address=node.address, pid=os.getpid())
    with open(told, "wb") as file:
        file.write(msgspec.json.encode(served) + b"\n")
    broken = asyncio.create_task(node.wait())
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({broken, stopping}, return_when=asyncio.FIRST_COMPLETED)
    is_broken = broken.done()
    for task in (broken, stopping):
        task.cancel()
    await node.close(0.0 if is_broken else spec.config.cluster.drain_s)
    return 1 if is_broken else 0


if __name__ == "__main__":
    raise SystemExit(main())
