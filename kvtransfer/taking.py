"""One fetch: what is wanted, how far it is, and the taker's half of the conversation.

Runs on one thread over one connection, and may be interrupted from another. Knows neither pools of
connections nor who waits for the blocks.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from kvtransfer.inbound import Inbound, Link
from kvtransfer.landing import Wanted
from kvtransfer.manifest import (
    RAW,
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
    Message,
    Ready,
    Wait,
)
from kvtransfer.routes import Routes
from kvtransfer.transports.transport import Parted, Transport, WayBroken
from kvtransfer.window import Claim
from triptych.core.clock import Clock
from triptych.core.config import TransferConfig
from triptych.core.errors import Cancelled, InstanceLost, TransferError, from_code
from triptych.core.handoff import TransferRef

FIRST_CREDITS = 2
"""Chunks that may come without asking, if the window has room: one is read while one comes."""


class Taking:
    """One fetch."""

    def __init__(
        self, ref: TransferRef, wanted: Wanted, clock: Clock, config: TransferConfig
    ) -> None:
        self.ref = ref
        self.wanted = wanted
        self._clock = clock
        self._config = config
        self._inbound = Inbound(ref, wanted, clock)
        self.on_arrived: Callable[[int], None] = _ignore
        self.is_over = False
        self._is_interrupted = False
        self._lock = threading.Lock()
        self._wake: Callable[[], None] | None = None
        self._link: Link | None = None
        self._claim: Claim | None = None
        self._spoke_s = 0.0

    @property
    def num_bytes(self) -> int:
        """About as many as there are to move."""
        return len(self.wanted.blocks) * self.wanted.memory.layout.block_bytes

    def interrupt(self) -> None:
        """Make the thread end soon, with Cancelled."""
        with self._lock:
            self._is_interrupted = True
            if self._wake is not None:
                self._wake()

    def attach(self, wake: Callable[[], None]) -> None:
        """What ends the waiting of the thread from now on. Raises Cancelled if it should end."""
        with self._lock:
            self._wake = wake
        self.check()

    def detach(self) -> None:
        """The thread waits no more, at least not there."""
        with self._lock:
            self._wake = None
        self._link = None

    def check(self) -> None:
        """Called when the thread was woken. Raises Cancelled if the fetch was interrupted, and
        passes credits on that it was granted."""
        if self._is_interrupted:
            raise Cancelled("the fetch was cancelled")
        if self._link is not None and self._link.channel.is_between_frames:
            self._pass_credits(self._link)

    def run(self, link: Link, claim: Claim, ways: Sequence[Transport], routes: Routes) -> bytes:
        """The conversation of one fetch; the tail. ``ways`` are those that may carry the bytes,
        from the connection's own on."""
        ref, wanted, left = self.ref, self.wanted, list(ways)
        self._link, self._claim = link, claim
        tokens = (wanted.first_token, wanted.end_token) if wanted.blocks else (0, 0)
        via, config = left[0].name, self._config
        size = self._message_bytes(routes, via)
        count = claim.begin(min(FIRST_CREDITS, -(-self.num_bytes // size)))
        promise = ref.handle, ref.epoch, ref.layout
        self._speak(link, Fetch(*promise, *tokens, via, config.wire, size, count))
        while True:
            try:
                finish = self._take(link, claim, left[0], routes)
                break
            except WayBroken as broken:
                left.pop(0)
                if not left:
                    raise (broken.__cause__ or broken) from None
                claim.reset()
                via = left[0].name
                size = self._message_bytes(routes, via)
                self._speak(link, Again(via, self._inbound.num_read, size))
        self._inbound.check_whole(finish)
        round_trip_s = self._acknowledge(link)
        routes.learn(ref.instance, left[0].name, self._inbound.measured(round_trip_s))
        return finish.tail

    def _message_bytes(self, routes: Routes, via: str) -> int:
        """How large messages should be by a way. What is converted on its way goes through memory
        of that size, so it stays small."""
        config, layout = self._config, self.wanted.memory.layout
        is_plain = config.wire == RAW and self.ref.layout == layout.fingerprint
        most = config.max_message_bytes if is_plain else config.message_bytes
        return routes.message_bytes(self.ref.instance, via, config.message_bytes, most)

    @contextmanager
    def _trying(self, way: Transport, routes: Routes) -> Iterator[None]:
        """A way by which bytes do not come, or come wrong, is avoided for a while; not so the last
        resort."""
        try:
            yield
        except (TransferError, InstanceLost):
            if way.name != "tcp":
                routes.broke(self.ref.instance, way.name)
            raise

    def _take(self, link: Link, claim: Claim, way: Transport, routes: Routes) -> Finish:
        """Read what comes by one way, until the giver says that it was all."""
        inbound = self._inbound
        is_announced, is_again = False, inbound.is_begun
        inbound.is_begun = True
        while True:
            message = self._hear(link)
            if isinstance(message, Broken) and message.via == way.name:
                with self._trying(way, routes):
                    raise WayBroken(f"the giver: {message.detail}")
            if isinstance(message, Manifest) and not is_announced:
                with self._trying(way, routes):
                    inbound.begin(link, message, way)
                is_announced = True
            elif not is_announced and is_again:
                continue  # said before the giver knew that we want it another way
            elif isinstance(message, Ready):
                if not claim.returned(message.num_returned):
                    raise TransferError("credits come back that were not given")
                claim.want(message.num_ready)
            elif isinstance(message, Chunk) and is_announced:
                try:
                    with self._trying(way, routes):
                        self._take_chunk(link, claim, message)
                except Parted as parted:
                    raise parted.error from None
            elif isinstance(message, Finish) and is_announced:
                return message
            else:
                raise TransferError(f"{type(message).__name__} where it does not belong")

    def _take_chunk(self, link: Link, claim: Claim, chunk: Chunk) -> None:
        """Let credits for the next ones go first, so that the giver works while we read."""
        number = link.channel.num_received - 1
        if not chunk.is_free and not claim.began():
            raise TransferError("a chunk without a credit")
        claim.want(chunk.num_ready)
        self.check()
        self._inbound.read(chunk, link.channel, number, digest=self._config.digest)
        if not chunk.is_free:
            claim.ended()
        self.on_arrived(self._inbound.num_arrived)

    def _pass_credits(self, link: Link) -> None:
        if self._claim is not None and (count := self._claim.collect()):
            self._speak(link, Credit(count, self._inbound.num_read))

    def _acknowledge(self, link: Link) -> float:
        """Seconds until the giver has confirmed that it counts. The ack is our last word: a
        heartbeat behind it would be where the next fetch begins."""
        asked_s = self._clock.now()
        self._speak(link, Ack())
        while isinstance(message := _listen(link), Wait):
            continue
        if not isinstance(message, Acked):
            raise TransferError("an ack was not confirmed")
        return self._clock.now() - asked_s

    def _speak(self, link: Link, message: Fetch | Wait | Ack | Credit | Again) -> None:
        link.channel.send(message)
        self._spoke_s = self._clock.now()

    def _hear(self, link: Link) -> Message:
        """The next message that is not a heartbeat; says now and then that we live, too."""
        while True:
            self._pass_credits(link)
            message = _listen(link)
            is_wait = isinstance(message, Wait)
            if is_wait or self._clock.now() >= self._spoke_s + self._config.heartbeat_s:
                self._speak(link, Wait())
            if not is_wait:
                return message


def _listen(link: Link) -> Message:
    """The next message. Raises what the giver meant by an Abort."""
    message, _ = link.channel.receive()
    if isinstance(message, Abort):
        raise from_code(message.code, message.detail)
    return message


def _ignore(_: int) -> None:
    """Nobody wants to know how far it is."""
