"""``triptych doctor --links``: how quick each way is between two processes of this machine.

Whole transfers through a real outbox and a real receiver, with all that belongs to one (lease,
digests, acknowledgement); a plain copy in memory and a bare socket beside them, all in turns. What
it says is of this machine alone: between hosts, instances measure their links themselves.
"""

import asyncio
import secrets
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from statistics import median

import msgspec

from cli.link_peer import GIVER, LINE_BYTES, Offers, Pool, Start, Started, offer
from cli.link_ways import BareSocket, Cma, Memcpy, Propose, Transfers, Way
from kvtransfer.build import build_outbox, build_receiver, build_ways
from triptych.core.clock import MonotonicClock
from triptych.core.config import TransferConfig
from triptych.core.errors import InstanceLost, TriptychError
from triptych.core.handoff import Endpoint
from triptych.core.ids import InstanceId

SIZES = (65_536, 1 << 20, 16 << 20)
TURNS = 3
LATENCY_BYTES = 4096
LATENCY_COUNT = 30
FETCH_BYTES = 64 << 20
"""Moved at a time to measure bandwidth; pools are twice as large, and so than a processor's
caches."""
MAX_FETCH_BYTES = 4 << 30
MAX_BLOCKS = 65_536
TAKER = InstanceId("links-taker@0")
NEIGHBOUR = InstanceId("links-neighbour@0")

Say = Callable[[str], None]


class Link(msgspec.Struct, frozen=True):
    """One way, measured."""

    way: str
    latency_s: tuple[float, ...]
    """Of each turn the median of whole transfers of one block of 4 KiB."""
    bytes_per_s: dict[int, tuple[float, ...]]
    """By bytes of a block, of each turn."""
    problem: str = ""
    """Why it could not be measured."""


async def measure(
    config: TransferConfig,
    sizes: Sequence[int] = SIZES,
    turns: int = TURNS,
    say: Say | None = None,
    *,
    fetch_bytes: int = FETCH_BYTES,
    huge: bool = False,
) -> tuple[Link, ...]:
    """Every way that this machine has, and what they are compared with.

    Args:
        config: what the server would use; ``transport`` and ``lease_s`` are not heeded.
        sizes: bytes of a block.
        turns: how often each is measured.
        say: hears what goes on.
        fetch_bytes: what a transfer has, all its blocks together.
        huge: out of huge pages that nobody shares, in place of stores as those of a CPU.
    """
    config = msgspec.structs.replace(config, lease_s=600.0, transport="auto")
    say = say or _unheard
    say("starting another process")
    async with AsyncExitStack() as stack:
        ways = await _open(config, stack, 2 * fetch_bytes, huge=huge)
        measured = [Measured(way, sizes) for way in ways]
        for turn in range(-1, turns):  # the first one warms up
            name = f"turn {turn + 1} of {turns}" if turn >= 0 else "warming"
            for size in (None, *sizes):
                for each in measured:  # what is compared stands close together in time
                    say(f"{name}, {'latency' if size is None else named(size)}, {each.way.name}")
                    await each.take_turn(size, fetch_bytes, counts=turn >= 0)
        return tuple(each.link() for each in measured)


class Measured:
    """One way, and what is known of it so far."""

    def __init__(self, way: Way, sizes: Sequence[int]) -> None:
        self.way = way
        self._latency_s: list[float] = []
        self._bytes_per_s: dict[int, list[float]] = {size: [] for size in sizes}
        self._problem = ""

    async def take_turn(self, size: int | None, fetch_bytes: int, *, counts: bool) -> None:
        """Move ``fetch_bytes`` in blocks of ``size``; with None, single small blocks. A way that
        failed once is not asked again."""
        if self._problem:
            return
        try:
            if size is None:
                found, values = (
                    self._latency_s,
                    await self.way.move_singly(LATENCY_BYTES, LATENCY_COUNT),
                )
            else:
                count = max(1, fetch_bytes // size)
                seconds = await self.way.move(size, count)
                found, values = self._bytes_per_s[size], [size * count / seconds]
        except TriptychError as error:
            self._problem = str(error)
            return
        if counts:
            found.append(median(values))

    def link(self) -> Link:
        """What was found."""
        if self._problem:
            return Link(self.way.name, (), {}, self._problem)
        rates = {size: tuple(found) for size, found in self._bytes_per_s.items()}
        return Link(self.way.name, tuple(self._latency_s), rates)


def _unheard(_: str) -> None:
    """Nobody watches."""


# -- both processes


async def _open(
    config: TransferConfig, stack: AsyncExitStack, pool_bytes: int, *, huge: bool
) -> list[Way]:
    secret = secrets.token_hex(16)
    theirs, ours = Pool(2, pool_bytes, huge=huge), Pool(3, pool_bytes, huge=huge)
    stack.callback(theirs.close)
    stack.callback(ours.close)
    neighbour = build_outbox(
        NEIGHBOUR,
        config,
        secret.encode(),
        MonotonicClock(),
        asyncio.get_running_loop().call_soon_threadsafe,
    )
    stack.push_async_callback(neighbour.close)

    async def near(offers: Offers) -> None:
        offer(neighbour, theirs, offers)

    start = Start(config, secret, pool_bytes, huge)
    pid, started, far = await stack.enter_async_context(_peer(start))
    bare = BareSocket(config.host, started.socket_port, ours)
    stack.callback(bare.close)
    found: list[Way] = [Memcpy(theirs, ours), Cma(pid, started.address, ours), bare]
    for name in [way.name for way in build_ways(TAKER, config)]:
        only = msgspec.structs.replace(config, transport=name)
        ways = build_ways(TAKER, only, {NEIGHBOUR: neighbour} if name == "inproc" else None)
        for way in ways:
            stack.callback(way.close)
        receiver = build_receiver(TAKER, only, secret.encode(), MonotonicClock(), ways)
        stack.push_async_callback(receiver.close)
        made = Transfers(name, receiver, ours)
        is_near = name == "inproc"
        found.append(
            made.reach(NEIGHBOUR, Endpoint(), near)
            if is_near
            else made.reach(GIVER, started.endpoint, far)
        )
    return found


@asynccontextmanager
async def _peer(start: Start) -> AsyncIterator[tuple[int, Started, Propose]]:
    """Another process that gives: its number, what it says, and how to make it offer. Raises
    InstanceLost."""
    pipe = asyncio.subprocess.PIPE
    command = (sys.executable, "-m", "cli.link_peer")
    process = await asyncio.create_subprocess_exec(
        *command, stdin=pipe, stdout=pipe, limit=LINE_BYTES
    )
    stdin, stdout = process.stdin, process.stdout
    assert stdin is not None
    assert stdout is not None

    async def ask(line: Start | Offers) -> bytes:
        stdin.write(msgspec.json.encode(line) + b"\n")
        answer = await stdout.readline()
        if not answer:
            raise InstanceLost("the other process has ended")
        return answer

    async def propose(offers: Offers) -> None:
        await ask(offers)

    try:
        started = msgspec.json.decode(await ask(start), type=Started)
        yield process.pid, started, propose
    finally:
        stdin.close()
        try:
            await asyncio.wait_for(process.wait(), 10)
        except TimeoutError:
            process.kill()
            await process.wait()


# -- for people


def table(links: Sequence[Link]) -> str:
    """A line per way: latency, then bandwidth by size of a block."""
    sizes = sorted({size for link in links for size in link.bytes_per_s})
    lines = [f"{'way':8} {'4 KiB':>9}" + "".join(f"{named(size):>12}" for size in sizes)]
    for link in links:
        if link.problem:
            lines.append(f"{link.way:8} {link.problem}")
            continue
        rates = [f"{median(link.bytes_per_s[size]) / 1e9:7.2f} GB/s" for size in sizes]
        lines.append(f"{link.way:8} {median(link.latency_s) * 1e6:6.0f} us" + "".join(rates))
    return "\n".join(lines)


def named(num_bytes: int) -> str:
    """``64 KiB``."""
    is_large = num_bytes >= 1 << 20
    return f"{num_bytes >> (20 if is_large else 10)} {'MiB' if is_large else 'KiB'}"
