"""Bytes of one fetch on their way into the own blocks: checked, read, verified, counted.

Knows pieces, sources and landings; of the conversation only what a Manifest and a Chunk announce.
"""

import hmac

from kvtransfer.channel import Channel
from kvtransfer.converted import landing
from kvtransfer.landing import Landing, Wanted
from kvtransfer.manifest import Chunk, Finish, Manifest
from kvtransfer.pieces import Piece, Progress
from kvtransfer.routes import SAMPLE_BYTES, Measured
from kvtransfer.transports.transport import Source, Transport
from triptych.core.clock import Clock
from triptych.core.errors import TransferError
from triptych.core.handoff import TransferRef
from triptych.core.ids import InstanceId


class Link:
    """One open connection to a peer and the peer's stores opened through it."""

    def __init__(self, peer: InstanceId, transport: Transport, channel: Channel) -> None:
        self.peer = peer
        self.transport = transport
        """The way by which it was opened, and that carries its bytes unless it breaks."""
        self.channel = channel
        self._sources: dict[tuple[str, int], Source] = {}
        self._buffer = bytearray()

    def source(self, manifest: Manifest, way: Transport, ref: TransferRef) -> Source:
        """The store that a manifest names, by a way; opened with its first manifest."""
        key = (way.name, manifest.store)
        if key not in self._sources:
            self._sources[key] = way.source(self.channel, manifest, ref)
        return self._sources[key]

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


class Inbound:
    """What one fetch has of what it wants."""

    def __init__(self, ref: TransferRef, wanted: Wanted, clock: Clock) -> None:
        self._ref = ref
        self._wanted = wanted
        self._clock = clock
        self._manifest: Manifest | None = None
        self._source: Source | None = None
        self._landing: Landing | None = None
        self._progress = Progress(0, 0, 1)
        self._first_token = 0
        """Where the giver's first wanted block begins."""
        self.is_begun = False
        """Whether a way was tried."""
        self.num_read = 0
        """Chunks that are read and verified."""
        self._sample_bytes = 0
        self._sample_s = 0.0

    def begin(self, link: Link, manifest: Manifest, way: Transport) -> None:
        """Check what is announced before a byte is written, and open where it is. What was read by
        another way before stays."""
        is_promised = manifest.layout.fingerprint == self._ref.layout
        if not is_promised or not manifest.layout.can_become(self._wanted.memory.layout):
            raise TransferError("the producer's block layout is another one")
        if self._manifest is None:
            self._expect(manifest)
        self._manifest = manifest
        self._landing = landing(manifest, self._wanted, link.buffer)
        self._sample_bytes, self._sample_s = 0, 0.0
        self._source = link.source(manifest, way, self._ref)

    def _expect(self, manifest: Manifest) -> None:
        wanted, layout = self._wanted, manifest.layout
        end = layout.num_blocks(wanted.end_token)
        first = wanted.first_token // layout.block_size if wanted.blocks else end
        self._first_token = first * layout.block_size
        self._progress = Progress(first, end, layout.num_layers)

    @property
    def num_arrived(self) -> int:
        """Own blocks, from the first wanted on, that are complete."""
        wanted = self._wanted
        if self._progress.is_complete:
            return len(wanted.blocks)
        size = 0 if self._manifest is None else self._manifest.layout.block_size
        end_token = self._first_token + self._progress.num_complete * size
        return max(0, end_token - wanted.first_token) // wanted.memory.layout.block_size

    def read(self, chunk: Chunk, channel: Channel, number: int, *, digest: bool) -> None:
        """Check a chunk, which the ``number``-th frame announced, against what was asked for, then
        let it into the own blocks. Raises TransferError, WayBroken or InstanceLost."""
        if self._manifest is None or self._source is None or self._landing is None:
            raise TransferError("a chunk of nothing that was announced")
        piece = Piece(chunk.first_block, chunk.num_blocks, chunk.first_layer, chunk.num_layers)
        self._progress.check(piece)
        if len(chunk.places) != chunk.num_blocks:
            raise TransferError("chunk: not a place for each block")
        began_s = self._clock.now()
        parts = self._landing.bring(piece, chunk.places, self._source)
        if digest and not hmac.compare_digest(channel.tag(number, parts), chunk.tag):
            raise TransferError("the digest of a chunk does not fit its bytes")
        self._landing.settle()
        self._sample(sum(map(len, parts)), self._clock.now() - began_s)
        self._progress.add(piece)
        self.num_read += 1

    def _sample(self, num_bytes: int, seconds: float) -> None:
        """All that a chunk takes is measured, because some ways leave the reading to the digest."""
        if num_bytes >= SAMPLE_BYTES:
            self._sample_bytes += num_bytes
            self._sample_s += seconds

    def check_whole(self, finish: Finish) -> None:
        """Raise TransferError unless everything is there."""
        layout = self._manifest.layout if self._manifest is not None else None
        is_whole = layout is not None and finish.num_blocks == layout.num_blocks(
            self._ref.num_tokens
        )
        if not self._progress.is_complete or not is_whole:
            raise TransferError("blocks are missing at the end of a transfer")

    def measured(self, round_trip_s: float) -> Measured:
        """What the way that carried the last bytes took."""
        return Measured(round_trip_s, self._sample_bytes, self._sample_s)
