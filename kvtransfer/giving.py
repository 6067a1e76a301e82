"""One fetch as its giver sees it: pieces out of an offer against the taker's credits.

    Manifest; while pieces are ready: a Chunk per credit; without credit Ready, until Credit comes
    Broken if a way does not carry, until
    Again(via): the same by another way, from the first chunk on that the taker has not read

Small chunks need no credit: to ask would take longer than to send them. Knows pieces, credits and
carriers; the connection and its heartbeats are the conversation's.
"""

import sys
from collections import deque
from typing import TYPE_CHECKING

from kvtransfer.lease import Ended, Release, Verdict
from kvtransfer.manifest import (
    RAW,
    Ack,
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
from kvtransfer.pieces import Piece, piece_bytes
from kvtransfer.transports.transport import Carrier, slices
from triptych.core.errors import InstanceLost, TransferError

if TYPE_CHECKING:
    from kvtransfer.giver import Conversation

SMALL_BYTES = 65_536
"""A raw chunk up to this size needs no credit."""


class Giving:
    """What is given of one offer to its only taker."""

    def __init__(self, talk: "Conversation", offer: Offer, fetch: Fetch, num_credits: int) -> None:
        self._talk = talk
        self._offer = offer
        self._layout = offer.memory.layout
        self._via = fetch.via
        self._carrier: Carrier | None = None
        """None while the way that was asked for does not carry, and until another one is."""
        self._packed = talk.packing(offer, fetch.wire)
        self._free_bytes = SMALL_BYTES if self._packed.wire == RAW else 0
        first, end = (
            fetch.first_token // self._layout.block_size,
            self._layout.num_blocks(fetch.end_token),
        )
        self._message_bytes = min(fetch.message_bytes, self._packed.piece_bytes)
        self._wanted = (first, end) if fetch.first_token < fetch.end_token else (end, end)
        self._credits = num_credits
        self._num_told = 0
        """Chunks that the taker knows to be ready."""
        self._unread: deque[Piece] = deque()
        """Given, and perhaps not read yet."""
        self._num_read = 0
        self._is_over = False

    def run(self) -> None:
        """Give everything and return when the taker has acknowledged it. Raises Ended."""
        self._announce()
        while not self._is_over:
            total = self._advance()
            if total is None:
                self._talk.pause(self.hear)
            elif total < self._wanted[1]:
                detail = f"{self._wanted[1]} blocks wanted, {total} made"
                raise Ended(Verdict(Release.FAILED, detail=detail))
            else:
                self._finish(total)

    def hear(self, message: Wait | Credit | Again) -> None:
        """Take in what the taker says before the end."""
        if isinstance(message, Credit):
            self._note_read(message.num_read)
            self._credits += message.count
        elif isinstance(message, Again):
            self._note_read(message.num_read)
            self._give_again(message)

    def _announce(self) -> None:
        store = self._packed.memory
        try:
            carrier = self._talk.carrier(self._via)
            attach = carrier.attach(store)
        except (TransferError, InstanceLost) as error:
            self._break(error)
            return
        self._carrier = carrier
        number, size = self._talk.number(store), len(store.view)
        manifest = Manifest(self._layout, self._packed.wire, number, size, attach)
        self._talk.say(manifest, held=True)

    def _break(self, error: TransferError | InstanceLost) -> None:
        """The way does not carry: say so, if that can be said."""
        channel = self._talk.channel
        if channel.is_cut or not channel.is_between_frames:
            raise error
        self._carrier = None
        self._talk.say(Broken(self._via, error.detail[:2000]))

    def _advance(self) -> int | None:
        """Give what may go now. How many blocks there are in all, once all that is wanted went."""
        while True:
            if self._carrier is None:
                return None
            has_slot = len(self._unread) < self._packed.num_slots
            allowance = sys.maxsize if self._credits and has_slot else self._free_bytes
            ahead = self._talk.look(self._offer, self._wanted, self._message_bytes, allowance)
            if ahead.piece is None:
                break
            self._give(ahead, ahead.piece, self._carrier)
        if ahead.num_ready:
            if self._credits or ahead.num_ready != self._num_told:
                self._ask(ahead.num_ready)
            return None
        if self._credits and ahead.total is None:
            self._ask(0)
        return ahead.total

    def _ask(self, num_ready: int) -> None:
        """Say what is ready and give back the credits that cannot be used now: for want of pieces,
        or of slots. New ones come with word of what was read, which frees slots."""
        unused, self._credits = self._credits, 0
        self._num_told = num_ready
        self._talk.say(Ready(num_ready, unused))

    def _give(self, ahead: Ahead, piece: Piece, carrier: Carrier) -> None:
        """Announce a chunk and let the carrier have its bytes."""
        is_free = piece_bytes(self._layout, piece) <= self._free_bytes
        self._credits -= not is_free
        places, spans = self._packed.pack(piece, ahead.blocks)
        store = self._packed.memory
        tag = self._talk.tag(slices(store.view, spans))
        self._unread.append(piece)
        self._num_told = ahead.num_ready
        self._talk.say(Chunk(*piece, tuple(places), tag, ahead.num_ready, is_free), held=True)
        try:
            carrier.push(store, spans)
            if not is_free:  # what is small may wait for what follows
                self._talk.channel.flush()
        except (TransferError, InstanceLost) as error:
            self._break(error)

    def _finish(self, total: int) -> None:
        """Say that it was all, and wait for the ack, or for the wish to have it another way."""
        self._talk.say(Finish(total, self._offer.tail or b""))
        while True:
            message = self._talk.hear()
            if isinstance(message, Ack):
                self._is_over = True
                self._note_read(self._num_read + len(self._unread))
                return
            self.hear(message)
            if isinstance(message, Again):
                return

    def _note_read(self, num_read: int) -> None:
        """The taker has read the first ``num_read`` chunks: they need not be kept."""
        if not self._num_read <= num_read <= self._num_read + len(self._unread):
            raise TransferError("a taker has read what was not sent")
        while self._num_read < num_read:
            self._num_read += 1
            self._unread.popleft()
            self._packed.read()

    def _give_again(self, again: Again) -> None:
        self._via = again.via
        self._message_bytes = min(again.message_bytes, self._packed.piece_bytes)
        for _ in self._unread:
            self._packed.read()
        self._talk.put_back(self._offer, tuple(self._unread))
        self._unread.clear()
        self._credits = self._num_told = 0
        self._announce()
