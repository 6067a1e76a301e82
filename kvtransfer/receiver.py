"""The taking side: pulls promised blocks out of other instances' outboxes into own blocks.

A fetch runs on one thread, over one pooled connection. When ``fetch`` has returned or raised, by
whatever cause, its thread has ended its work: nobody writes into the blocks any more. Does not know
what the blocks mean, nor who waits for them.
"""

import asyncio
import contextlib
import hashlib
import hmac
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from kvtransfer.channel import Channel, Unreachable
from kvtransfer.manifest import Abort, Ack, Acked, Chunk, Fetch, Finish, Manifest, Message, Wait
from kvtransfer.transport import Source, Transport, choose, slices
from triptych.core.census import Holding
from triptych.core.clock import Clock
from triptych.core.config import TransferConfig
from triptych.core.errors import (
    Cancelled,
    InstanceLost,
    InvariantBroken,
    TransferError,
    TriptychError,
    from_code,
)
from triptych.core.handoff import TransferRef
from triptych.core.ids import InstanceId
from triptych.core.ports import BlockMemory

MAX_IDLE_LINKS = 64
"""Open connections that wait for the next fetch, all peers together."""
MAX_FETCHES = 4096
"""Threads, hence fetches at a time; more wait for a free one."""


class Link:
    """One open connection to a peer and the peer's stores opened through it."""

    def __init__(self, peer: InstanceId, transport: Transport, channel: Channel) -> None:
        self.peer = peer
        self.transport = transport
        self.channel = channel
        self._sources: dict[int, Source] = {}

    def source(self, manifest: Manifest, ref: TransferRef) -> Source:
        """The store that a manifest names; opened with its first manifest."""
        if manifest.memory not in self._sources:
            opened = self.transport.source(self.channel, manifest, ref)
            self._sources[manifest.memory] = opened
        return self._sources[manifest.memory]

    def close(self) -> None:
        """Cut the connection and close the stores."""
        self.channel.close()
        while self._sources:
            self._sources.popitem()[1].close()


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
        self._transports = transports
        self._threads = ThreadPoolExecutor(MAX_FETCHES, f"{instance} taker")
        self._lock = threading.Lock()
        self._idle: list[Link] = []
        self._active: set[_Taking] = set()
        self._is_closed = False

    async def fetch(
        self,
        ref: TransferRef,
        memory: BlockMemory,
        blocks: Sequence[int],
        first_block: int,
        on_arrived: Callable[[int], None],
        deadline_s: float,
    ) -> bytes:
        """Fill ``blocks`` of ``memory`` with blocks ``first_block ...`` of a promise; its tail.

        Waits until the promise is offered and complete. ``on_arrived(n)`` is called on the event
        loop when the first ``n`` of ``blocks`` are filled and verified; they count only when this
        has returned. With no ``blocks`` only the tail is fetched. ``deadline_s`` is a point of the
        clock. Raises TransferError, InstanceLost, DeadlineExceeded, Cancelled or what the producer
        failed with. The blocks may be reused at once then.
        """
        if ref.layout != memory.layout.fingerprint:
            raise TransferError("the producer's block layout is another one")
        if self._is_closed:
            raise Cancelled("the instance stops")
        loop = asyncio.get_running_loop()
        taking = _Taking(ref, memory, blocks, first_block)
        taking.on_arrived = lambda count: _tell(loop, taking, on_arrived, count)
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

    def _take(self, taking: "_Taking", deadline_s: float) -> bytes:
        link = self._pooled(taking.ref.instance) or self._connect(taking, deadline_s)
        channel = link.channel
        channel.deadline_s = deadline_s
        channel.on_wake = taking.check
        is_clean = False
        try:
            taking.attach(channel.wake)
            tail = taking.run(link, self._clock, self._config)
            is_clean = True
        finally:
            taking.attach(_nothing)
            if is_clean:
                self._keep(link)
            else:
                link.close()
        return tail

    def _connect(self, taking: "_Taking", deadline_s: float) -> Link:
        """A new connection by the nearest way that works. Raises InstanceLost."""
        ref = taking.ref
        problem = InstanceLost(f"{ref.instance} offers no way to reach it")
        for transport in choose(self._transports, ref, self._config.transport):
            try:
                return self._open(transport, taking, deadline_s)
            except Unreachable as error:
                # Another network namespace has the same boot id but not the same Unix sockets.
                problem = error
        raise problem

    def _open(self, transport: Transport, taking: "_Taking", deadline_s: float) -> Link:
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
                taking.attach(_nothing)
                channel.close()

    def _pooled(self, peer: InstanceId) -> Link | None:
        """An idle connection to ``peer``; those that the other side has closed are dropped."""
        with self._lock:
            dead = [link for link in self._idle if link.channel.has_news()]
            alive = [link for link in self._idle if link not in dead]
            found = next((link for link in reversed(alive) if link.peer == peer), None)
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


class _Taking:
    """One fetch: what is wanted and how far it is. Runs on one thread, interrupted from another."""

    def __init__(
        self, ref: TransferRef, memory: BlockMemory, blocks: Sequence[int], first_block: int
    ) -> None:
        if any(not 0 <= block < memory.num_blocks for block in blocks):
            raise InvariantBroken("fetch: a block that the own store does not have")
        self.ref = ref
        self.memory = memory
        self.blocks = tuple(blocks)
        self.first_block = first_block
        self._range = (first_block, len(self.blocks))
        self.on_arrived: Callable[[int], None] = _ignore
        self.is_over = False
        self._is_interrupted = False
        self._lock = threading.Lock()
        self._wake: Callable[[], None] = _nothing
        self._spoke_s = 0.0

    def interrupt(self) -> None:
        """Make the thread end soon, with Cancelled."""
        with self._lock:
            self._is_interrupted = True
            self._wake()

    def attach(self, wake: Callable[[], None]) -> None:
        """What ends the waiting of the thread from now on. Raises Cancelled if it should end."""
        with self._lock:
            self._wake = wake
        if wake is not _nothing:
            self.check()

    def check(self) -> None:
        """Raise Cancelled if the fetch was interrupted."""
        if self._is_interrupted:
            raise Cancelled("the fetch was cancelled")

    def run(self, link: Link, clock: Clock, config: TransferConfig) -> bytes:
        """The conversation of one fetch; the tail."""
        ref, layout = self.ref, self.memory.layout
        self._speak(link, clock, Fetch(ref.handle, ref.epoch, ref.layout, *self._range))
        source: Source | None = None
        arrived = 0
        while True:
            message, payload_bytes = self._hear(link, clock, config.heartbeat_s)
            if isinstance(message, Manifest) and source is None:
                if message.layout != layout.fingerprint:
                    raise TransferError("the producer's block layout is another one")
                source = link.source(message, ref)
            elif isinstance(message, Chunk) and source is not None:
                self._read(source, message, payload_bytes, arrived, digest=config.digest)
                arrived += message.num_blocks
                self.on_arrived(arrived)
            elif isinstance(message, Finish) and source is not None:
                break
            else:
                raise TransferError(f"{type(message).__name__} where it does not belong")
        if arrived != len(self.blocks) or message.num_blocks != layout.num_blocks(ref.num_tokens):
            raise TransferError("blocks are missing at the end of a transfer")
        self._speak(link, clock, Ack())
        if not isinstance(self._hear(link, clock, config.heartbeat_s)[0], Acked):
            raise TransferError("an ack was not confirmed")
        return message.tail

    def _speak(self, link: Link, clock: Clock, message: Fetch | Wait | Ack) -> None:
        link.channel.send(message)
        self._spoke_s = clock.now()

    def _hear(self, link: Link, clock: Clock, heartbeat_s: float) -> tuple[Message, int]:
        """The next message that is not a heartbeat; says now and then that we live, too."""
        while True:
            message, payload_bytes = link.channel.receive()
            if isinstance(message, Abort):
                raise from_code(message.code, message.detail)
            is_wait = isinstance(message, Wait)
            if is_wait or clock.now() >= self._spoke_s + heartbeat_s:
                self._speak(link, clock, Wait())
            if not is_wait:
                return message, payload_bytes

    def _read(
        self, source: Source, chunk: Chunk, payload_bytes: int, arrived: int, *, digest: bool
    ) -> None:
        """Check a chunk against what was asked for, then let it into the own blocks."""
        blocks = self.blocks[arrived : arrived + chunk.num_blocks]
        size = len(blocks) * self.memory.layout.block_bytes
        if chunk.first_block != self.first_block + arrived or len(blocks) != chunk.num_blocks:
            raise TransferError("a chunk that was not asked for")
        if payload_bytes != (0 if chunk.blocks else size):
            raise TransferError(f"a chunk of {payload_bytes} bytes where {size} belong")
        self.check()
        targets = slices(self.memory, blocks)
        source.read(chunk, targets)
        if digest:
            state = hashlib.sha256()
            for target in targets:
                state.update(target)
            if not hmac.compare_digest(state.digest(), chunk.digest):
                raise TransferError("the digest of a chunk does not fit its bytes")


async def _settled(work: "asyncio.Future[bytes]") -> None:
    """Wait until a thread's work is over, however often we are cancelled meanwhile."""
    while not work.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([work])


def _tell(
    loop: asyncio.AbstractEventLoop,
    taking: _Taking,
    on_arrived: Callable[[int], None],
    count: int,
) -> None:
    try:
        loop.call_soon_threadsafe(_arrive, taking, on_arrived, count)
    except RuntimeError:
        raise Cancelled("the event loop is closed") from None


def _arrive(taking: _Taking, on_arrived: Callable[[int], None], count: int) -> None:
    if not taking.is_over:
        on_arrived(count)


def _ignore(_: int) -> None:
    """Nobody wants to know how far it is."""


def _nothing() -> None:
    """Nobody waits."""
