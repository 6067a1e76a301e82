"""What is offered under leases: pieces in the order in which they are written, and the table of
all offers of an instance.

The owner tells an offer which layers of which blocks are written; the thread of the only taker
takes pieces out of it. Pieces that have not gone yet join, so a taker that comes late is sent large
ones. Knows blocks and layers; no sockets, no stores' bytes.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

from kvtransfer.lease import Ended, Lease, LeaseState, Release, Verdict
from kvtransfer.manifest import MAX_CHUNK_BLOCKS, MAX_READY, MAX_TAIL_BYTES, Fetch
from kvtransfer.pieces import Piece, piece_bytes
from triptych.core.clock import Clock
from triptych.core.errors import InvariantBroken
from triptych.core.ids import BlockId, Handle
from triptych.core.ports import BlockMemory

log = logging.getLogger(__name__)

MAX_VERDICTS = 8192
"""How many handles that are over are remembered, to answer a late fetch at once."""


class Ahead(NamedTuple):
    """What of an offer goes next, and what is behind."""

    piece: Piece | None
    blocks: tuple[BlockId, ...]
    """Of the piece."""
    num_ready: int
    """Chunks that could go behind the piece."""
    total: int | None
    """Blocks of the whole transfer, once it is complete."""


class Offer:
    """Blocks that become available under one handle, in order, and the tail behind them.

    ``append``, ``finish`` and ``fail`` may be called on any thread. Behind the release they do
    nothing, because the release may be on its way to the caller when it calls.
    """

    def __init__(
        self,
        lease: Lease,
        memory: BlockMemory,
        on_release: Callable[[str], None],
        changed: Callable[["Offer", Callable[[], None]], None],
    ) -> None:
        self.lease = lease
        self.memory = memory
        self.on_release = on_release
        self._changed = changed
        self.blocks: list[BlockId] = []
        """All that are begun."""
        self.num_blocks = 0
        """Of those, how many have all their layers."""
        self._num_layers = 0
        """Layers that the others have."""
        self._pieces: deque[Piece] = deque()
        """Written and not taken out yet."""
        self.tail: bytes | None = None
        """Set when the offer is complete."""
        self.verdict: Verdict | None = None
        """Set when the offer is to end without being taken."""
        self.wake: Callable[[], None] = _nothing
        """Tells the connected taker's thread that something changed."""
        self.settled: Future[None] = Future()
        """Done when the memory is free and the owner was told."""

    def append(self, blocks: Sequence[BlockId], num_layers: int | None = None) -> None:
        """The next blocks of the transfer are written and will not change: all their layers, or
        the first ``num_layers``. Then the same blocks come again with more, until all are there."""
        taken, layout = tuple(blocks), self.memory.layout
        upto = layout.num_layers if num_layers is None else num_layers
        if any(not 0 <= block < self.memory.num_blocks for block in taken):
            raise InvariantBroken("offer: a block that the store does not have")

        def change() -> None:
            begun = tuple(self.blocks[self.num_blocks :])
            if self.tail is not None:
                raise InvariantBroken("offer: a block behind the end")
            if (begun and begun != taken) or not self._num_layers <= upto <= layout.num_layers:
                raise InvariantBroken("offer: layers out of turn")
            if not taken or upto == self._num_layers:
                return
            self.blocks[self.num_blocks :] = taken
            span = upto - self._num_layers
            self._pieces.append(Piece(self.num_blocks, len(taken), self._num_layers, span))
            self._num_layers = upto
            if upto == layout.num_layers:
                self.num_blocks, self._num_layers = len(self.blocks), 0
            self._join()

        self._changed(self, change)

    def finish(self, tail: bytes = b"") -> None:
        """All blocks are appended, whole; ``tail`` (at most 64 KiB) goes behind them."""
        if len(tail) > MAX_TAIL_BYTES:
            raise InvariantBroken(f"offer: tail of {len(tail)} bytes, limit {MAX_TAIL_BYTES}")

        def change() -> None:
            if self.tail is not None:
                raise InvariantBroken("offer: finished twice")
            if self._num_layers:
                raise InvariantBroken("offer: finished before all layers were there")
            self.tail = tail

        self._changed(self, change)

    def fail(self, code: str, detail: str) -> None:
        """The producer cannot finish; the taker is told ``code`` at once."""

        def change() -> None:
            if self.verdict is None:
                self.verdict = Verdict(Release.FAILED, code, detail)

        self._changed(self, change)

    def take_out(self, first: int, end: int, max_bytes: int, allowance: int) -> Piece | None:
        """The next piece of blocks ``[first, end)``, cut to ``max_bytes`` if it is of more than one
        block; None if none is written, or it has more bytes than ``allowance``. What lies outside
        the range is dropped for good."""
        while self._pieces:
            piece = self._pieces[0]
            begin, behind = max(piece.first_block, first), min(piece.end_block, end)
            if begin >= behind:
                self._pieces.popleft()
                continue
            each, most = self._cut(piece, max_bytes)
            count = min(most, behind - begin)
            if each * count > allowance:
                return None
            self._pieces.popleft()
            if begin + count < behind:
                rest = behind - begin - count
                self._pieces.appendleft(piece._replace(first_block=begin + count, num_blocks=rest))
            return piece._replace(first_block=begin, num_blocks=count)
        return None

    def num_ready(self, first: int, end: int, max_bytes: int) -> int:
        """Chunks that the written pieces of blocks ``[first, end)`` make, at most ``MAX_READY``."""
        count = 0
        for piece in self._pieces:
            span = min(piece.end_block, end) - max(piece.first_block, first)
            count += -(-max(0, span) // self._cut(piece, max_bytes)[1])
        return min(count, MAX_READY)

    def put_back(self, pieces: Sequence[Piece]) -> None:
        """Pieces that were taken out are to be given once more, before the others."""
        self._pieces.extendleft(reversed(pieces))

    def _cut(self, piece: Piece, max_bytes: int) -> tuple[int, int]:
        """Bytes of a block's part of ``piece``, and how many blocks of it make a chunk."""
        each = piece_bytes(self.memory.layout, piece) // piece.num_blocks
        return each, max(1, min(MAX_CHUNK_BLOCKS, max_bytes // each))

    def _join(self) -> None:
        """Make one piece of the last ones, as far as they fit together."""
        pieces = self._pieces
        while len(pieces) > 1 and (joined := pieces[-2].joined(pieces[-1])) is not None:
            pieces.pop()
            pieces[-1] = joined


class Offers:
    """All offers of an instance by handle. Any thread may call anything."""

    def __init__(self, lease_s: float, clock: Clock, call_soon: Callable[..., Any]) -> None:
        self._lease_s = lease_s
        self._clock = clock
        self._call_soon = call_soon
        self._lock = threading.Lock()
        self._offers: dict[Handle, Offer] = {}
        self._expected: dict[Handle, Callable[[], None]] = {}
        """Takers that came before the offer, and how to wake them."""
        self._verdicts: dict[Handle, Verdict] = {}
        self._stopped: Verdict | None = None

    def add(self, offer: Offer) -> None:
        """A new promise. If its handle was refused before, it is released at once."""
        handle = offer.lease.id
        with self._lock:
            if handle in self._offers:
                raise InvariantBroken("offer: the handle is offered already")
            self._offers[handle] = offer
            wake = self._expected.get(handle, _nothing)
            verdict = self._verdicts.get(handle, self._stopped)
        if verdict is not None:
            self.settle(offer, Verdict(Release.WITHDRAWN, verdict.code, verdict.detail))
        wake()

    def change(self, offer: Offer, change: Callable[[], None]) -> None:
        """Apply what the producer says, unless the offer is over, and let the taker know."""
        with self._lock:
            if offer.lease.state in (LeaseState.TAKEN, LeaseState.RELEASED):
                return
            change()
            if offer.tail is not None and offer.lease.deadline_s is None:
                offer.lease.deadline_s = self._clock.now() + self._lease_s
            wake, verdict = offer.wake, offer.verdict
            if verdict is not None and offer.lease.state is LeaseState.PROMISED:
                self._release(offer, verdict)
            else:
                verdict = None
        wake()
        if verdict is not None:
            self._tell(offer, verdict)

    def refuse(self, handle: Handle, verdict: Verdict) -> Offer | None:
        """End what is offered, or will be, under ``handle``. The offer, if one is not over."""
        with self._lock:
            offer = self._offers.get(handle)
            wake = self._expected.get(handle, _nothing)
            if offer is None:
                self._remember(handle, verdict)
        if offer is not None:
            self.change(offer, lambda: _end(offer, verdict))
        wake()
        return offer

    def sweep(self) -> None:
        """Release what nobody came for in time."""
        # "preempted": a taker that comes late queued for its turn; that is load, nobody's fault.
        verdict = Verdict(Release.EXPIRED, "preempted", "nobody fetched in time")
        now_s = self._clock.now()
        with self._lock:
            over = [offer for offer in self._offers.values() if offer.lease.has_expired(now_s)]
            for offer in over:
                self._release(offer, verdict)
        for offer in over:
            self._tell(offer, verdict)

    def relieve(self, memory: BlockMemory, handles: Collection[Handle]) -> set[Handle]:
        """Offers under ``handles`` have no room in ``memory``. If takers wait for some of them,
        which are returned, release the youngest offer there that is complete and that nobody
        fetches: its taker may wait for just the room that theirs have."""
        with self._lock:
            short = [self._offers[handle] for handle in handles if handle in self._offers]
            awaited = {offer.lease.id for offer in short if offer.lease.state is LeaseState.OPEN}
        if awaited:
            self.revoke(lambda offer: offer.memory is memory)
        return awaited

    def revoke(self, is_meant: Callable[[Offer], bool]) -> None:
        """Release the youngest offer of those meant that is complete and that nobody fetches."""
        verdict = Verdict(Release.REVOKED, "preempted", "its room was needed")
        with self._lock:
            idle = (offer for offer in reversed(self._offers.values()) if _is_idle(offer))
            victim = next(filter(is_meant, idle), None)
            if victim is not None:
                self._release(victim, verdict)
        if victim is not None:
            self._tell(victim, verdict)

    def stop(self) -> None:
        """End everything, now and from now on."""
        verdict = Verdict(Release.WITHDRAWN, "unavailable", "the instance stops")
        with self._lock:
            self._stopped = verdict
            handles = [*self._offers, *self._expected]
        for handle in handles:
            self.refuse(handle, verdict)

    def owners(self) -> list[str]:
        """Owner of every lease that is held, or whose owner was not told yet that it is not."""
        with self._lock:
            return [offer.lease.owner for offer in self._offers.values()]

    # -- of one taker's thread

    def claim(self, fetch: Fetch, taker: str, wake: Callable[[], None]) -> Offer | None:
        """Open the lease for a taker; None while nothing is offered under the handle, and the
        taker is woken when that changes. Raises Ended if it cannot have it."""
        handle = Handle(fetch.handle)
        with self._lock:
            verdict = self._verdicts.get(handle, self._stopped)
            if verdict is not None:
                raise Ended(verdict)
            offer = self._offers.get(handle)
            is_open = offer is not None and offer.lease.state is not LeaseState.PROMISED
            if is_open or self._expected.setdefault(handle, wake) != wake:
                raise _refused("the handle is being fetched by another")
            if offer is None:
                return None
            del self._expected[handle]
            if fetch.epoch != offer.lease.epoch:
                raise _refused(f"epoch {fetch.epoch}, not {offer.lease.epoch}")
            if fetch.layout != offer.memory.layout.fingerprint:
                raise _refused("the layout of the blocks is not the one that was promised")
            offer.lease.open(taker, self._clock.now())
            offer.wake = wake
            return offer

    def give_up(self, fetch: Fetch, wake: Callable[[], None]) -> None:
        """A taker waits for its offer no longer."""
        with self._lock:
            if self._expected.get(Handle(fetch.handle)) == wake:
                del self._expected[Handle(fetch.handle)]

    def look(self, offer: Offer, wanted: tuple[int, int], max_bytes: int, allowance: int) -> Ahead:
        """The next piece of blocks ``wanted`` that can go, if it has no more bytes than
        ``allowance``, and what is behind it. Raises Ended if the offer is to end."""
        with self._lock:
            if offer.verdict is not None:
                raise Ended(offer.verdict)
            piece = offer.take_out(*wanted, max_bytes, allowance)
            blocks = () if piece is None else offer.blocks[piece.first_block : piece.end_block]
            num_ready = offer.num_ready(*wanted, max_bytes)
            total = None if offer.tail is None else offer.num_blocks
            return Ahead(piece, tuple(blocks), num_ready, total)

    def put_back(self, offer: Offer, pieces: Sequence[Piece]) -> None:
        """See ``Offer.put_back``."""
        with self._lock:
            offer.put_back(pieces)

    def take(self, offer: Offer) -> None:
        """The ack came: from here on it cannot be withdrawn. Raises Ended if it was before."""
        with self._lock:
            if offer.verdict is not None:
                raise Ended(offer.verdict)
            offer.lease.take(self._clock.now())

    def settle(self, offer: Offer, verdict: Verdict) -> None:
        """Release the lease, remember why, and tell the owner."""
        with self._lock:
            self._release(offer, verdict)
        self._tell(offer, verdict)

    # -- inside

    def _release(self, offer: Offer, verdict: Verdict) -> None:
        offer.lease.release(verdict.reason)
        offer.lease.check()
        offer.wake = _nothing
        self._remember(offer.lease.id, verdict)

    def _tell(self, offer: Offer, verdict: Verdict) -> None:
        """Tell the owner, and forget the offer in the same turn of its loop: who sees a census
        without it has been told, and the other way round."""

        def tell() -> None:
            self._forget(offer)
            offer.on_release(verdict.reason.value)
            offer.settled.set_result(None)

        try:
            self._call_soon(tell)
        except RuntimeError:
            log.debug("the event loop is closed: nobody is left to hear of a release")
            self._forget(offer)
            offer.settled.set_result(None)

    def _forget(self, offer: Offer) -> None:
        with self._lock:
            del self._offers[offer.lease.id]

    def _remember(self, handle: Handle, verdict: Verdict) -> None:
        self._verdicts.setdefault(handle, verdict)
        while len(self._verdicts) > MAX_VERDICTS:
            del self._verdicts[next(iter(self._verdicts))]


def _nothing() -> None:
    """Wakes nobody."""


def _is_idle(offer: Offer) -> bool:
    """Whether it is complete and nobody fetches it."""
    return offer.tail is not None and offer.lease.state is LeaseState.PROMISED


def _end(offer: Offer, verdict: Verdict) -> None:
    if offer.verdict is None:
        offer.verdict = verdict


def _refused(detail: str) -> Ended:
    return Ended(Verdict(Release.TAKER_LOST, "data_loss", detail))
