"""Starts owners of stores (``owner``) and stands in for the conversation with them."""

import json
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import msgspec

from kvtransfer.transports.transport import Extent
from tests.kvtransfer.stores import CALM, Store, layout
from triptych.core.clock import MonotonicClock
from triptych.core.errors import Cancelled, DeadlineExceeded

ROOT = Path(__file__).parents[3]
NUM_BLOCKS = 131
SIZE = NUM_BLOCKS * layout(1024).block_bytes


class Waiting:
    """What a way sees of its channel; ``cancel`` may be called by another thread."""

    def __init__(self, *, is_cut: bool = True) -> None:
        self.is_cut = is_cut
        """Whether the owner is lost with its memory; else only the way to it is."""
        self.is_cancelled = False
        self.deadline_s = float("inf")

    def cancel(self) -> None:
        self.is_cancelled = True

    def flush(self) -> None:
        pass

    def has_news(self) -> bool:
        return False

    def check(self) -> None:
        if MonotonicClock().now() >= self.deadline_s:
            raise DeadlineExceeded("too long")
        if self.is_cancelled:
            raise Cancelled("the fetch was cancelled")


class Owner:
    def __init__(self, process) -> None:
        self.process = process
        line = self.hear()
        self.attach = bytes.fromhex(line["attach"])
        self.num_threads = line["threads"]

    def say(self, **line) -> None:
        self.process.stdin.write(json.dumps(line) + "\n")
        self.process.stdin.flush()

    def hear(self):
        return json.loads(self.process.stdout.readline())

    def source(self, way, waiting=None):
        manifest = SimpleNamespace(attach=self.attach)
        ref = SimpleNamespace(endpoint=SimpleNamespace(host="127.0.0.1"))
        return way.source(waiting or Waiting(), manifest, ref)


@contextmanager
def owner(way: str, config=CALM):
    command = [sys.executable, "-m", "tests.kvtransfer.transports.owner", way]
    command += [msgspec.json.encode(config).decode(), str(NUM_BLOCKS)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, cwd=ROOT, text=True)
    try:
        yield Owner(process)
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def store(seed: int = 2) -> Store:
    return Store(NUM_BLOCKS, layout(1024)).fill(seed)


def drawn(rng, num_bytes: int = SIZE) -> tuple[list[Extent], list[tuple[int, int]]]:
    """Extents of a giver and, cut elsewhere, runs of the taker of the same total length; the
    taker's do not overlap."""
    theirs = []
    for _ in range(rng.choice([1, 2, 7, 40])):
        length = rng.choice([1, 3, 4096, 65_537, 300_001])
        theirs.append(Extent(rng.randrange(num_bytes - length), length))
    total = sum(extent.length for extent in theirs)
    if total > num_bytes // 2:
        return drawn(rng, num_bytes)
    ours, at, rest = [], rng.randrange(1000), total
    while rest:
        length = min(rest, rng.choice([1, 17, 65_536, 1 << 20]))
        ours.append((at, length))
        at, rest = at + length, rest - length
        at += rng.randrange(3) if at + rest + 3 < num_bytes else 0
    rng.shuffle(ours)
    return theirs, ours


def views(target: Store, ours) -> list[memoryview]:
    return [target.view[at : at + length] for at, length in ours]


def joined(target: Store, runs) -> bytes:
    return b"".join(target.view[at : at + length] for at, length in runs)
