"""One connection of an outbox: fetches served one after the other, on a thread of its own.

Blocking threads, because they were measured 3 to 5 times as fast as asyncio streams. Knows the
connection, its heartbeats and what was opened for it; a fetch is ``giving``.
"""

import logging
import math
import select
import socket
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from kvtransfer.channel import Channel
from kvtransfer.converted import packing
from kvtransfer.giving import Giving
from kvtransfer.landing import Packing
from kvtransfer.lease import Ended, Release, Verdict
from kvtransfer.manifest import (
    Abort,
    Ack,
    Acked,
    Again,
    Broken,
    Chunk,
    Credit,
    Fetch,
    Finish,
    Manifest,
    Ready,
    Wait,
)
from kvtransfer.offer import Ahead, Offer
from kvtransfer.pieces import Piece
from kvtransfer.transports.transport import Carrier
from triptych.core.errors import InstanceLost, TransferError, TriptychError
from triptych.core.ports import BlockMemory

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
        self._is_asked = False
        """Whether the taker waits for what it fetches, or for why it cannot have it."""
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
        self.is_serving = self._is_asked = True
        offer, num_credits = self._claim(fetch)
        self._offer = offer
        verdict = Verdict(Release.TAKER_LOST, detail="its taker was lost")
        try:
            Giving(self, offer, fetch, num_credits).run()
            self._offers.take(offer)
            verdict = Verdict(Release.TAKEN, detail="it was taken already")
        except Ended as ended:
            verdict = ended.verdict
            raise
        finally:
            self._offer = None
            self.is_serving = False
            self._offers.settle(offer, verdict)
        self._is_asked = False
        self.channel.send(Acked())

    def _claim(self, fetch: Fetch) -> tuple[Offer, int]:
        """The offer, and the credits that are left of those that came with the fetch: who waits
        for an offer keeps none."""
        until_s = self._clock.now() + self._config.lease_s
        num_credits = fetch.credits
        try:
            while (offer := self._offers.claim(fetch, self.peer, self.channel.wake)) is None:
                if num_credits:
                    self.say(Ready(0, num_credits))
                    num_credits = 0
                self.pause(_only_wait)
                if self._clock.now() >= until_s:
                    raise Ended(Verdict(Release.EXPIRED, detail="nothing was offered in time"))
        finally:
            self._offers.give_up(fetch, self.channel.wake)
        return offer, num_credits

    # -- for the fetch that is being served

    def look(
        self, offer: Offer, wanted: tuple[int, int], message_bytes: int, allowance: int
    ) -> Ahead:
        """See ``Offers.look``."""
        most = min(message_bytes, self._config.max_message_bytes)
        return self._offers.look(offer, wanted, most, allowance)

    def put_back(self, offer: Offer, pieces: Sequence[Piece]) -> None:
        """See ``Offer.put_back``."""
        self._offers.put_back(offer, pieces)

    def number(self, memory: BlockMemory) -> int:
        """Number of a store at this giver."""
        return self._outbox.number(memory)

    def carrier(self, via: str) -> Carrier:
        """What carries bytes to this taker by a way. Raises TransferError."""
        if via not in self._carriers:
            self._carriers[via] = self._outbox.carrier(via, self.channel)
        self._poll_s = min(carrier.poll_s for carrier in self._carriers.values())
        return self._carriers[via]

    def packing(self, offer: Offer, wire: str) -> Packing:
        """How blocks of an offer's store go out in a format."""
        key = (self._outbox.number(offer.memory), wire)
        if key not in self._packings:
            self._packings[key] = packing(offer.memory, wire, self._config, self._outbox.staging)
        return self._packings[key]

    def tag(self, parts: Sequence[memoryview]) -> bytes:
        """Digest of bytes that the next frame announces; empty if digests are off."""
        return self.channel.tag(self.channel.num_sent, parts) if self._config.digest else b""

    def say(
        self, message: Manifest | Chunk | Ready | Wait | Finish | Broken, *, held: bool = False
    ) -> None:
        """See ``Channel.send``."""
        self.channel.send(message, held=held)
        self._spoke_s = self._clock.now()

    def pause(self, hear: Callable[[Wait | Credit | Again], None]) -> None:
        """Wait until woken or told something, with heartbeats, which the taker answers."""
        until_s = self._spoke_s + self._config.heartbeat_s
        if self._clock.now() >= until_s:
            self.say(Wait())
        elif self._wait(until_s):
            message = self.hear()
            if isinstance(message, Ack):
                raise TransferError("a taker acknowledges what it does not have")
            hear(message)
        elif self._clock.now() >= self._heard_s + self._config.timeout_s:
            raise InstanceLost("the taker is silent")

    def hear(self) -> Wait | Credit | Again | Ack:
        """What the taker says next; it must say something."""
        if self._poll_s < math.inf:
            until_s = self._clock.now() + self._config.timeout_s
            while not self._wait(until_s) and self._clock.now() < until_s:
                continue
        message, _ = self.channel.receive()
        if not isinstance(message, Wait | Credit | Again | Ack):
            raise TransferError("a taker answers with Wait, Credit, Again or Ack")
        self._heard_s = self._clock.now()
        if self._offer is not None:
            self._offer.lease.heard_s = self._heard_s
        return message

    def _wait(self, until_s: float) -> bool:
        """Wait for the taker's words until then, or until woken or a carrier has something to
        do. Whether there are some."""
        soon_s = min(until_s, self._clock.now() + self._poll_s)
        has_words = self.channel.wait(select.POLLIN, soon_s, patient=True)
        if self._poll_s < math.inf:
            for carrier in self._carriers.values():
                carrier.poll()
        return has_words

    def _abort(self, verdict: Verdict) -> None:
        """Tell a taker that waits for something, if the stream is at a place where it can be told.
        The connection ends. Who keeps it for later would not read: its end says enough."""
        self.is_serving = False
        self.channel.on_wake = _nothing
        try:
            if self._is_asked and self.channel.is_between_frames:
                self.channel.send(Abort(verdict.code, verdict.detail[:2000]))
                self.channel.linger()
        except TriptychError as error:
            log.debug("connection with %s: %s", self.peer, error)


def _nothing() -> None:
    """Nothing is to be checked any more."""


def _only_wait(message: Wait | Credit | Again) -> None:
    """A taker has nothing to say before there is something for it but that it lives."""
    if not isinstance(message, Wait):
        raise TransferError("a taker has nothing to say but that it lives")
