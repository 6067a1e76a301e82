"""The taking side: pulls promised blocks out of other instances' outboxes into own blocks.

A fetch runs on one thread, over one pooled connection. When ``fetch`` has returned or raised, by
whatever cause, its thread has ended its work: nobody writes into the blocks any more. Does not know
what the blocks mean, nor who waits for them.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from kvtransfer.channel import Channel, Unreachable
from kvtransfer.inbound import Link
from kvtransfer.landing import Wanted
from kvtransfer.routes import Routes
from kvtransfer.taking import Taking
from kvtransfer.transports.transport import Transport
from kvtransfer.window import Window
from triptych.core.catalog import LinkReport
from triptych.core.census import Holding
from triptych.core.clock import Clock
from triptych.core.config import TransferConfig
from triptych.core.errors import (
    Cancelled,
    InstanceLost,
    InvariantBroken,
    TransferError,
    TriptychError,
)
from triptych.core.handoff import TransferRef
from triptych.core.ids import BlockId, InstanceId, succeeds
from triptych.core.ports import BlockMemory

MAX_IDLE_LINKS = 64
"""Open connections that wait for the next fetch, all peers together."""
MAX_FETCHES = 4096
"""Threads, hence fetches at a time; more wait for a free one."""


class Receiver:
    """Fetches of one instance. ``transports`` stand nearest first."""

    def __init__(
        self,
        instance: InstanceId,
        config: TransferConfig,
        secret: bytes,
        clock: Clock,
        transports: Sequence[Transport],
    ) -> None:
        self._instance = instance
        self._config = config
        self._secret = secret
        self._clock = clock
        self._routes = Routes(transports, config.transport, clock)
        self._windows: dict[InstanceId, Window] = {}
        self._threads = ThreadPoolExecutor(MAX_FETCHES, f"{instance} taker")
        self._lock = threading.Lock()
        self._idle: list[Link] = []
        self._active: set[Taking] = set()
        self._is_closed = False

    async def fetch(
        self,
        ref: TransferRef,
        memory: BlockMemory,
        blocks: Sequence[int],
        first_block: int,
        on_arrived: Callable[[int], None] | None,
        deadline_s: float,
    ) -> bytes:
        """See ``Fetching``."""
        wanted = _wanted(ref, memory, blocks, first_block)
        if self._is_closed:
            raise Cancelled("the instance stops")
        loop = asyncio.get_running_loop()
        taking = Taking(ref, wanted, self._clock, self._config)
        if on_arrived is not None:
            taking.on_arrived = partial(_tell, loop, taking, on_arrived)
        self._active.add(taking)
        work = loop.run_in_executor(self._threads, self._take, taking, deadline_s)
        try:
            await asyncio.wait([work])
        except asyncio.CancelledError:
            taking.interrupt()
            await _settled(work)
            if not work.cancelled():
                work.exception()
            raise
        finally:
            taking.is_over = True
            self._active.discard(taking)
        try:
            return work.result()
        except TriptychError as error:
            error.blame = error.blame or ref.instance
            raise

    def census(self) -> list[Holding]:
        """Fetches in flight by the instance that gives."""
        givers = [taking.ref.instance for taking in list(self._active)]
        return [Holding("fetch", giver, givers.count(giver)) for giver in sorted(set(givers))]

    def links(self) -> list[LinkReport]:
        """How the ways to other instances are, by the transfers that were made."""
        return self._routes.reports()

    async def close(self) -> None:
        """End all fetches with Cancelled, then the connections. Idempotent."""
        self._is_closed = True
        for taking in list(self._active):
            taking.interrupt()
        await asyncio.to_thread(self._threads.shutdown)
        with self._lock:
            idle, self._idle = self._idle, []
        for link in idle:
            link.close()

    # -- on a fetch's thread

    def _take(self, taking: Taking, deadline_s: float) -> bytes:
        ways = self._routes.rank(taking.ref, taking.num_bytes)
        link = self._connect(taking, ways, deadline_s)
        channel, window = link.channel, self._window(link.peer)
        channel.deadline_s = deadline_s
        channel.on_wake = taking.check
        claim = window.claim(deadline_s, channel.wake)
        rest = [way for way in ways if way is not link.transport]
        is_clean = False
        try:
            taking.attach(channel.wake)
            tail = taking.run(link, claim, [link.transport, *rest], self._routes)
            is_clean = True
        finally:
            taking.detach()
            window.leave(claim)
            if is_clean:
                self._keep(link)
            else:
                link.close()
        return tail

    def _window(self, peer: InstanceId) -> Window:
        """The window of a peer that has answered. It is new with the incarnation, and then what was
        known of earlier ones goes."""
        gone: list[Link] = []
        with self._lock:
            if peer not in self._windows:
                for former in [each for each in self._windows if succeeds(peer, each)]:
                    del self._windows[former]
                gone = [link for link in self._idle if succeeds(peer, link.peer)]
                self._idle = [link for link in self._idle if link not in gone]
                self._windows[peer] = Window(self._config.credits)
                self._routes.succeed(peer)
            window = self._windows[peer]
        for link in gone:
            link.close()
        return window

    def _connect(self, taking: Taking, ways: list[Transport], deadline_s: float) -> Link:
        """A connection by the quickest way that works. Raises InstanceLost."""
        ref = taking.ref
        problem = InstanceLost(f"{ref.instance} offers no way to reach it")
        for way in ways:
            try:
                return self._pooled(ref.instance, way) or self._open(way, taking, deadline_s)
            except Unreachable as error:
                # Another network namespace has the same boot id but not the same Unix sockets.
                problem = error
                self._routes.broke(ref.instance, way.name)
        raise problem

    def _open(self, transport: Transport, taking: "Taking", deadline_s: float) -> Link:
        ref = taking.ref
        try:
            sock, address = transport.dial(ref)
            channel = Channel(sock, self._clock, self._config.timeout_s)
        except OSError as error:
            raise TransferError(f"no socket: {error.strerror}") from error
        is_open = False
        try:
            channel.deadline_s = deadline_s
            channel.takes_descriptors = transport.name == "shm"
            channel.on_wake = taking.check
            taking.attach(channel.wake)
            if address is not None:
                channel.connect(address)
            peer = channel.greet(self._secret, self._instance)
            if peer != ref.instance:
                raise InstanceLost(f"{peer} answers in place of {ref.instance}")
            is_open = True
            return Link(ref.instance, transport, channel)
        finally:
            if not is_open:
                taking.detach()
                channel.close()

    def _pooled(self, peer: InstanceId, way: Transport) -> Link | None:
        """An idle connection to ``peer``; those that the other side has closed are dropped."""
        with self._lock:
            dead = [link for link in self._idle if link.channel.has_news()]
            alive = [link for link in self._idle if link not in dead]
            found = next(
                (each for each in reversed(alive) if each.peer == peer and each.transport is way),
                None,
            )
            self._idle = [link for link in alive if link is not found]
        for link in dead:
            link.close()
        return found

    def _keep(self, link: Link) -> None:
        with self._lock:
            self._idle.append(link)
            surplus = self._idle[:-MAX_IDLE_LINKS]
            self._idle = self._idle[-MAX_IDLE_LINKS:]
        for old in surplus:
            old.close()


def _wanted(
    ref: TransferRef, memory: BlockMemory, blocks: Sequence[int], first_block: int
) -> Wanted:
    """The tokens of a promise that go into ``blocks``. Raises InvariantBroken."""
    if any(not 0 <= block < memory.num_blocks for block in blocks):
        raise InvariantBroken("fetch: a block that the own store does not have")
    size, end = memory.layout.block_size, first_block + len(blocks)
    if blocks and (end - 1) * size >= ref.num_tokens:
        raise InvariantBroken("fetch: more blocks than were promised")
    first_token = min(first_block * size, ref.num_tokens)
    own = tuple(BlockId(block) for block in blocks)
    return Wanted(memory, own, first_token, min(end * size, ref.num_tokens))


async def _settled(work: "asyncio.Future[bytes]") -> None:
    """Wait until a thread's work is over, however often we are cancelled meanwhile."""
    while not work.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([work])


def _tell(
    loop: asyncio.AbstractEventLoop,
    taking: Taking,
    on_arrived: Callable[[int], None],
    count: int,
) -> None:
    try:
        loop.call_soon_threadsafe(_arrive, taking, on_arrived, count)
    except RuntimeError:
        raise Cancelled("the event loop is closed") from None


def _arrive(taking: Taking, on_arrived: Callable[[int], None], count: int) -> None:
    if not taking.is_over:
        on_arrived(count)
