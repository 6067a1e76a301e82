"""One connection of an outbox: fetches served one after the other, on a thread of its own.

Blocking threads, because they were measured 3 to 5 times as fast as asyncio streams. Knows the
giver's half of the conversation; the bytes go by a carrier, out of a packing.
"""

import logging
import math
import select
import socket
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvtransfer.channel import Channel
from kvtransfer.converted import packing
from kvtransfer.landing import Packing
from kvtransfer.lease import Ended, Release, Verdict
from kvtransfer.manifest import Abort, Ack, Acked, Chunk, Fetch, Finish, Manifest, Wait
from kvtransfer.offer import Offer
from kvtransfer.pieces import Piece
from kvtransfer.transports.transport import Carrier, slices
from triptych.core.errors import InstanceLost, TransferError, TriptychError
from triptych.core.ids import BlockId

if TYPE_CHECKING:
    from kvtransfer.sender import Outbox

log = logging.getLogger(__name__)


class Conversation:
    """What one taker is given."""

    def __init__(self, outbox: "Outbox", sock: socket.socket) -> None:
        self._outbox = outbox
        self._offers = outbox.offers
        self._clock = outbox.clock
        self._config = outbox.config
        self._carriers: dict[str, Carrier] = {}
        self._packings: dict[tuple[int, str], Packing] = {}
        """By number of the store and wire format."""
        self._poll_s = math.inf
        self._spoke_s = 0.0
        self._heard_s = 0.0
        self.channel = Channel(sock, outbox.clock, outbox.config.timeout_s)
        self.channel.on_wake = self._check
        self.peer = "?"
        self.is_serving = False
        self._offer: Offer | None = None
        self.thread = threading.Thread(
            target=self._run, name=f"{outbox.instance} giver", daemon=True
        )

    def _run(self) -> None:
        try:
            self.peer = self.channel.welcome(self._outbox.secret, self._outbox.instance)
            while True:
                message, _ = self.channel.receive(math.inf)
                if not isinstance(message, Fetch):
                    raise TransferError("a taker begins with Fetch")
                self._serve(message)
        except Ended as ended:
            self._abort(ended.verdict)
        except TriptychError as error:
            log.debug("connection with %s: %s", self.peer, error)
        finally:
            self._close()

    def _close(self) -> None:
        for carrier in self._carriers.values():
            carrier.close()
        for packed in self._packings.values():
            packed.close()
        self.channel.close()
        self._outbox.forget(self)

    def _check(self) -> None:
        """Whether to go on; called when woken."""
        verdict = self._offer.verdict if self._offer is not None else None
        if verdict is not None:
            raise Ended(verdict)
        if self._outbox.is_closing:
            raise Ended(Verdict(Release.WITHDRAWN, "unavailable", "the instance stops"))

    def _serve(self, fetch: Fetch) -> None:
        """Give what ``fetch`` asks for. Whatever is raised, the lease is released first."""
        self._heard_s = self._clock.now()
        self.is_serving = True
        carrier = self._carrier(fetch.via)
        self._poll_s = carrier.poll_s
        offer = self._offer = self._claim(fetch)
        verdict = Verdict(Release.TAKER_LOST, detail="its taker was lost")
        try:
            self._give(offer, fetch, carrier)
            self._offers.take(offer)
            verdict = Verdict(Release.TAKEN, detail="it was taken already")
        except Ended as ended:
            verdict = ended.verdict
            raise
        finally:
            self._offer = None
            self.is_serving = False
            self._offers.settle(offer, verdict)
        self.channel.send(Acked())

    def _claim(self, fetch: Fetch) -> Offer:
        until_s = self._clock.now() + self._config.lease_s
        try:
            while (offer := self._offers.claim(fetch, self.peer, self.channel.wake)) is None:
                self._pause()
                if self._clock.now() >= until_s:
                    raise Ended(Verdict(Release.EXPIRED, detail="nothing was offered in time"))
        finally:
            self._offers.give_up(fetch, self.channel.wake)
        return offer

    def _give(self, offer: Offer, fetch: Fetch, carrier: Carrier) -> None:
        layout, packed = offer.memory.layout, self._packing(offer, fetch.wire)
        store = packed.memory
        attach = carrier.attach(store)
        number = self._outbox.number(store)
        self._say(Manifest(layout, packed.wire, number, len(store.view), attach))
        first, end = fetch.first_token // layout.block_size, layout.num_blocks(fetch.end_token)
        wanted = (first, end) if fetch.first_token < fetch.end_token else (end, end)
        while True:
            piece, blocks, total = self._offers.look(offer, wanted, self._config.message_bytes)
            if piece is not None:
                self._give_chunk(packed, carrier, piece, blocks)
                packed.read()
            elif total is None:
                self._pause()
            elif total < end:
                raise Ended(Verdict(Release.FAILED, detail=f"{end} blocks wanted, {total} made"))
            else:
                break
        self._say(Finish(total, offer.tail or b""))
        while isinstance(self._hear(), Wait):
            continue  # it still reads

    def _give_chunk(
        self, packed: Packing, carrier: Carrier, piece: Piece, blocks: Sequence[BlockId]
    ) -> None:
        places, spans = packed.pack(piece, blocks)
        tag = b""
        if self._config.digest:
            tag = self.channel.tag(self.channel.num_sent, slices(packed.memory.view, spans))
        self._say(Chunk(*piece, tuple(places), tag))
        carrier.push(packed.memory, spans)

    def _carrier(self, via: str) -> Carrier:
        if via not in self._carriers:
            self._carriers[via] = self._outbox.carrier(via, self.channel)
        return self._carriers[via]

    def _packing(self, offer: Offer, wire: str) -> Packing:
        key = (self._outbox.number(offer.memory), wire)
        if key not in self._packings:
            self._packings[key] = packing(offer.memory, wire, self._config, self._outbox.staging)
        return self._packings[key]

    def _say(self, message: Manifest | Chunk | Wait | Finish) -> None:
        self.channel.send(message)
        self._spoke_s = self._clock.now()

    def _pause(self) -> None:
        """Wait to be woken, with heartbeats, which the taker answers."""
        until_s = self._spoke_s + self._config.heartbeat_s
        if self._clock.now() >= until_s:
            self._say(Wait())
        elif self._wait(until_s):
            if not isinstance(self._hear(), Wait):
                raise TransferError("a taker has nothing to say but that it lives")
        elif self._clock.now() >= self._heard_s + self._config.timeout_s:
            raise InstanceLost("the taker is silent")

    def _wait(self, until_s: float) -> bool:
        """Wait for the taker's words until then, or until woken or the carrier has something to
        do. Whether there are some."""
        soon_s = min(until_s, self._clock.now() + self._poll_s)
        has_words = self.channel.wait(select.POLLIN, soon_s, patient=True)
        if self._poll_s < math.inf:
            for carrier in self._carriers.values():
                carrier.poll()
        return has_words

    def _hear(self) -> Wait | Ack:
        if self._poll_s < math.inf:
            until_s = self._clock.now() + self._config.timeout_s
            while not self._wait(until_s) and self._clock.now() < until_s:
                continue
        message, _ = self.channel.receive()
        if not isinstance(message, Wait | Ack):
            raise TransferError("a taker answers with Wait or Ack")
        self._heard_s = self._clock.now()
        if self._offer is not None:
            self._offer.lease.heard_s = self._heard_s
        return message

    def _abort(self, verdict: Verdict) -> None:
        """Tell the taker, if the stream is at a place where it can be told. The connection ends."""
        self.is_serving = False
        self.channel.on_wake = _nothing
        try:
            if self.channel.is_between_frames:
                self.channel.send(Abort(verdict.code, verdict.detail[:2000]))
                self.channel.linger()
        except TriptychError as error:
            log.debug("connection with %s: %s", self.peer, error)


def _nothing() -> None:
    """Nothing is to be checked any more."""
