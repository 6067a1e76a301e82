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
from cli.link_ways import BareSocket, Memcpy, Propose, Transfers, Way
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
"""Moved at a time to measure bandwidth."""
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
    huge: bool = False,
) -> tuple[Link, ...]:
    """Every way that this machine has, and what they are compared with.

    Args:
        config: what the server would use; ``transport`` and ``lease_s`` are not heeded.
        sizes: bytes of a block, of which a transfer of 64 MiB consists.
        turns: how often each is measured.
        say: hears what goes on.
        huge: out of huge pages that nobody shares, in place of stores as those of a CPU.
    """
    config = msgspec.structs.replace(config, lease_s=600.0)
    say = say or _unheard
    say("starting another process")
    async with AsyncExitStack() as stack:
        ways = await _open(config, stack, huge=huge)
        found = {way.name: Link(way.name, (), dict.fromkeys(sizes, ())) for way in ways}
        for turn in range(-1, turns):  # the first one warms up
            for way in ways:
                link = found[way.name]
                if not link.problem:
                    say(f"{way.name}, {f'turn {turn + 1} of {turns}' if turn >= 0 else 'warming'}")
                    measured = await _turn(way, sizes)
                    found[way.name] = _joined(link, measured) if turn >= 0 else _tried(measured)
        return tuple(found.values())


async def _turn(way: Way, sizes: Sequence[int]) -> Link:
    try:
        latency_s = median(await way.move_singly(LATENCY_BYTES, LATENCY_COUNT))
        counts = {size: max(1, FETCH_BYTES // size) for size in sizes}
        moved = {size: await _rates(way, size, n) for size, n in counts.items()}
    except TriptychError as error:
        return Link(way.name, (), {}, str(error))
    return Link(way.name, (latency_s,), moved)


async def _rates(way: Way, block_bytes: int, count: int) -> tuple[float, ...]:
    return (block_bytes * count / await way.move(block_bytes, count),)


def _tried(link: Link) -> Link:
    """A way whose first turn does not count."""
    return Link(link.way, (), dict.fromkeys(link.bytes_per_s, ()), link.problem)


def _joined(link: Link, turn: Link) -> Link:
    if turn.problem:
        return turn
    both = {size: link.bytes_per_s[size] + rates for size, rates in turn.bytes_per_s.items()}
    return Link(link.way, link.latency_s + turn.latency_s, both)


def _unheard(_: str) -> None:
    """Nobody watches."""


# -- both processes


async def _open(config: TransferConfig, stack: AsyncExitStack, *, huge: bool) -> list[Way]:
    secret = secrets.token_hex(16)
    theirs, ours = Pool(2, huge=huge), Pool(3, huge=huge)
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

    started, far = await stack.enter_async_context(_peer(Start(config, secret, huge)))
    bare = BareSocket(config.host, started.socket_port, ours)
    stack.callback(bare.close)
    found: list[Way] = [Memcpy(theirs, ours), bare]
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
async def _peer(start: Start) -> AsyncIterator[tuple[Started, Propose]]:
    """Another process that gives, and how to make it offer. Raises InstanceLost."""
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
        yield started, propose
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
