"""One fetch: what is wanted, how far it is, and the taker's half of the conversation.

Runs on one thread over one connection, and may be interrupted from another. Knows neither pools of
connections nor who waits for the blocks.
"""

import hmac
import threading
from collections.abc import Callable

from kvtransfer.channel import Channel
from kvtransfer.converted import landing
from kvtransfer.landing import Landing, Wanted
from kvtransfer.manifest import Abort, Ack, Acked, Chunk, Fetch, Finish, Manifest, Message, Wait
from kvtransfer.pieces import Piece, Progress
from kvtransfer.transports.transport import Source, Transport
from triptych.core.clock import Clock
from triptych.core.config import TransferConfig
from triptych.core.errors import Cancelled, TransferError, from_code
from triptych.core.handoff import TransferRef
from triptych.core.ids import InstanceId


class Link:
    """One open connection to a peer and the peer's stores opened through it."""

    def __init__(self, peer: InstanceId, transport: Transport, channel: Channel) -> None:
        self.peer = peer
        self.transport = transport
        self.channel = channel
        self._sources: dict[int, Source] = {}
        self._buffer = bytearray()

    def source(self, manifest: Manifest, ref: TransferRef) -> Source:
        """The store that a manifest names; opened with its first manifest."""
        if manifest.store not in self._sources:
            opened = self.transport.source(self.channel, manifest, ref)
            self._sources[manifest.store] = opened
        return self._sources[manifest.store]

    def buffer(self, num_bytes: int) -> memoryview:
        """Memory of this connection for bytes on their way; what was there before is void."""
        if len(self._buffer) < num_bytes:
            self._buffer = bytearray(num_bytes)
        return memoryview(self._buffer)[:num_bytes]

    def close(self) -> None:
        """Cut the connection and close the stores."""
        self.channel.close()
        while self._sources:
            self._sources.popitem()[1].close()


class _Inbound:
    """What a manifest announced, on its way into the own blocks."""

    def __init__(self, link: Link, manifest: Manifest, ref: TransferRef, wanted: Wanted) -> None:
        layout = manifest.layout
        self._manifest = manifest
        self._source = link.source(manifest, ref)
        self._wanted = wanted
        self._landing: Landing = landing(manifest, wanted, link.buffer)
        end = layout.num_blocks(wanted.end_token)
        first = wanted.first_token // layout.block_size if wanted.blocks else end
        self._first_token = first * layout.block_size
        self.progress = Progress(first, end, layout.num_layers)

    @property
    def num_arrived(self) -> int:
        """Own blocks, from the first wanted on, that are complete."""
        wanted, size = self._wanted, self._manifest.layout.block_size
        end_token = self._first_token + self.progress.num_complete * size
        if end_token >= wanted.end_token:
            return len(wanted.blocks)
        return max(0, end_token - wanted.first_token) // wanted.memory.layout.block_size

    def read(self, chunk: Chunk, channel: Channel, *, digest: bool) -> None:
        """Check a chunk against what was asked for, then let it into the own blocks."""
        number = channel.num_received - 1
        piece = Piece(chunk.first_block, chunk.num_blocks, chunk.first_layer, chunk.num_layers)
        self.progress.check(piece)
        if len(chunk.places) != chunk.num_blocks:
            raise TransferError("chunk: not a place for each block")
        parts = self._landing.bring(piece, chunk.places, self._source)
        if digest and not hmac.compare_digest(channel.tag(number, parts), chunk.tag):
            raise TransferError("the digest of a chunk does not fit its bytes")
        self._landing.settle()
        self.progress.add(piece)


class Taking:
    """One fetch."""

    def __init__(self, ref: TransferRef, wanted: Wanted) -> None:
        self.ref = ref
        self._wanted = wanted
        self._num_promised = 0
        """Blocks of the giver that the whole transfer has."""
        self.on_arrived: Callable[[int], None] = _ignore
        self.is_over = False
        self._is_interrupted = False
        self._lock = threading.Lock()
        self._wake: Callable[[], None] | None = None
        self._spoke_s = 0.0

    def interrupt(self) -> None:
        """Make the thread end soon, with Cancelled."""
        with self._lock:
            self._is_interrupted = True
            if self._wake is not None:
                self._wake()

    def attach(self, wake: Callable[[], None] | None) -> None:
        """What ends the waiting of the thread from now on. Raises Cancelled if it should end."""
        with self._lock:
            self._wake = wake
        if wake is not None:
            self.check()

    def check(self) -> None:
        """Raise Cancelled if the fetch was interrupted."""
        if self._is_interrupted:
            raise Cancelled("the fetch was cancelled")

    def run(self, link: Link, clock: Clock, config: TransferConfig) -> bytes:
        """The conversation of one fetch; the tail."""
        ref, wanted = self.ref, self._wanted
        tokens = (wanted.first_token, wanted.end_token) if wanted.blocks else (0, 0)
        fetch = Fetch(ref.handle, ref.epoch, ref.layout, *tokens, link.transport.name, config.wire)
        self._speak(link, clock, fetch)
        inbound: _Inbound | None = None
        while True:
            message = self._hear(link, clock, config.heartbeat_s)
            if isinstance(message, Manifest) and inbound is None:
                inbound = self._begin(link, message)
            elif isinstance(message, Chunk) and inbound is not None:
                self.check()
                inbound.read(message, link.channel, digest=config.digest)
                self.on_arrived(inbound.num_arrived)
            elif isinstance(message, Finish) and inbound is not None:
                break
            else:
                raise TransferError(f"{type(message).__name__} where it does not belong")
        self._check_whole(inbound, message)
        self._speak(link, clock, Ack())
        if not isinstance(self._hear(link, clock, config.heartbeat_s), Acked):
            raise TransferError("an ack was not confirmed")
        return message.tail

    def _begin(self, link: Link, manifest: Manifest) -> _Inbound:
        """Check what is announced before a byte is written."""
        is_promised = manifest.layout.fingerprint == self.ref.layout
        if not is_promised or not manifest.layout.can_become(self._wanted.memory.layout):
            raise TransferError("the producer's block layout is another one")
        self._num_promised = manifest.layout.num_blocks(self.ref.num_tokens)
        return _Inbound(link, manifest, self.ref, self._wanted)

    def _check_whole(self, inbound: _Inbound, finish: Finish) -> None:
        if not inbound.progress.is_complete or finish.num_blocks != self._num_promised:
            raise TransferError("blocks are missing at the end of a transfer")

    def _speak(self, link: Link, clock: Clock, message: Fetch | Wait | Ack) -> None:
        link.channel.send(message)
        self._spoke_s = clock.now()

    def _hear(self, link: Link, clock: Clock, heartbeat_s: float) -> Message:
        """The next message that is not a heartbeat; says now and then that we live, too."""
        while True:
            message, _ = link.channel.receive()
            if isinstance(message, Abort):
                raise from_code(message.code, message.detail)
            is_wait = isinstance(message, Wait)
            if is_wait or clock.now() >= self._spoke_s + heartbeat_s:
                self._speak(link, clock, Wait())
            if not is_wait:
                return message


def _ignore(_: int) -> None:
    """Nobody wants to know how far it is."""
