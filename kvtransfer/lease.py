"""Who may free promised memory: the lease, the offer filled under it, the table of all offers.

    PROMISED --fetch--> OPEN --ack--> TAKEN --> RELEASED
        |                 |                       ^
        | nobody came,    | taker fenced off      |
        | withdrawn       '-----------------------|
        '-----------------------------------------'

The fence: a taker may use what it copied only once it was told ``Acked``, and ``Acked`` is sent
only while the lease is held. So once a lease is released otherwise, nothing that a slow taker still
reads can ever count, and the memory may be reused at once. Knows states and blocks, no sockets.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from enum import Enum
from typing import Any

import msgspec

from kvtransfer.manifest import MAX_CHUNK_BLOCKS, MAX_TAIL_BYTES, Fetch
from triptych.core.clock import Clock
from triptych.core.errors import InvariantBroken
from triptych.core.ids import BlockId, Handle
from triptych.core.ports import BlockMemory

log = logging.getLogger(__name__)

MAX_VERDICTS = 8192
"""How many handles that are over are remembered, to answer a late fetch at once."""


class LeaseState(Enum):
    """Life of a lease."""

    PROMISED = "promised"
    OPEN = "open"
    TAKEN = "taken"
    RELEASED = "released"


class Release(Enum):
    """Why the memory is free again."""

    TAKEN = "taken"
    """The taker has it and said so."""
    WITHDRAWN = "withdrawn"
    """The owner took it back."""
    FAILED = "failed"
    """The producer could not finish it."""
    EXPIRED = "expired"
    """Nobody came."""
    TAKER_LOST = "taker_lost"
    """The taker vanished, fell silent or cancelled; its connection is closed."""


_NEXT = {
    LeaseState.PROMISED: {LeaseState.OPEN, LeaseState.RELEASED},
    LeaseState.OPEN: {LeaseState.TAKEN, LeaseState.RELEASED},
    LeaseState.TAKEN: {LeaseState.RELEASED},
    LeaseState.RELEASED: set[LeaseState](),
}


class Lease:
    """One transfer's claim on memory."""

    __slots__ = ("deadline_s", "epoch", "heard_s", "id", "owner", "reason", "state", "taker")

    def __init__(self, id: Handle, epoch: int, owner: str) -> None:  # noqa: A002
        self.id = id
        self.epoch = epoch
        self.owner = owner
        self.state = LeaseState.PROMISED
        self.taker = ""
        """Instance that fetches; empty while nobody does."""
        self.deadline_s: float | None = None
        """When to give up on a taker that never came; set once the offer is complete. It does
        not act while a taker is connected."""
        self.heard_s: float | None = None
        """Last sign of life of the taker."""
        self.reason: Release | None = None

    def _move(self, state: LeaseState) -> None:
        if state not in _NEXT[self.state]:
            raise InvariantBroken(f"lease: {self.state.value} cannot become {state.value}")
        self.state = state

    def open(self, taker: str, now_s: float) -> None:
        """A taker came."""
        self._move(LeaseState.OPEN)
        self.taker = taker
        self.heard_s = now_s

    def take(self, now_s: float) -> None:
        """The taker's ack came."""
        self._move(LeaseState.TAKEN)
        self.heard_s = now_s

    def release(self, reason: Release) -> None:
        """The memory is free. The caller vouches that no taker can be told otherwise."""
        if (reason is Release.TAKEN) != (self.state is LeaseState.TAKEN):
            raise InvariantBroken(f"lease: {self.state.value} released as {reason.value}")
        if reason is Release.EXPIRED and self.state is not LeaseState.PROMISED:
            raise InvariantBroken("lease: expired while a taker was connected")
        self._move(LeaseState.RELEASED)
        self.reason = reason

    def has_expired(self, now_s: float) -> bool:
        """Whether nobody came in time."""
        return (
            self.state is LeaseState.PROMISED
            and self.deadline_s is not None
            and now_s >= self.deadline_s
        )

    def check(self) -> None:
        """Raise InvariantBroken if the fields contradict each other."""
        has_taker = bool(self.taker)
        if self.state is LeaseState.PROMISED and has_taker:
            raise InvariantBroken("lease: promised, yet somebody takes it")
        if self.state in (LeaseState.OPEN, LeaseState.TAKEN) and not has_taker:
            raise InvariantBroken("lease: open without a taker")
        if (self.reason is not None) != (self.state is LeaseState.RELEASED):
            raise InvariantBroken("lease: a reason without a release, or a release without one")


class Verdict(msgspec.Struct, frozen=True):
    """How an offer ended, and what a taker that comes (or is there) is told."""

    reason: Release
    code: str = "data_loss"
    detail: str = ""


class Ended(Exception):
    """The taker cannot have the offer: an Abort follows."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.detail)
        self.verdict = verdict


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
        self.tail: bytes | None = None
        """Set when the offer is complete."""
        self.verdict: Verdict | None = None
        """Set when the offer is to end without being taken."""
        self.wake: Callable[[], None] = _nothing
        """Tells the connected taker's thread that something changed."""
        self.settled: Future[None] = Future()
        """Done when the memory is free and the owner was told."""

    def append(self, blocks: Sequence[BlockId]) -> None:
        """The next blocks of the transfer are written and will not change."""
        taken = tuple(blocks)
        if any(not 0 <= block < self.memory.num_blocks for block in taken):
            raise InvariantBroken("offer: a block that the store does not have")

        def change() -> None:
            if self.tail is not None:
                raise InvariantBroken("offer: a block behind the end")
            self.blocks.extend(taken)

        self._changed(self, change)

    def finish(self, tail: bytes = b"") -> None:
        """All blocks are appended; ``tail`` (at most 64 KiB) goes behind them."""
        if len(tail) > MAX_TAIL_BYTES:
            raise InvariantBroken(f"offer: tail of {len(tail)} bytes, limit {MAX_TAIL_BYTES}")

        def change() -> None:
            if self.tail is not None:
                raise InvariantBroken("offer: finished twice")
            self.tail = tail

        self._changed(self, change)

    def fail(self, code: str, detail: str) -> None:
        """The producer cannot finish; the taker is told ``code`` at once."""

        def change() -> None:
            if self.verdict is None:
                self.verdict = Verdict(Release.FAILED, code, detail)

        self._changed(self, change)

    def part(self, first: int, end: int, chunk_bytes: int) -> tuple[BlockId, ...]:
        """Blocks available of ``[first, end)`` that go into one chunk; empty if none is yet."""
        most = max(1, min(MAX_CHUNK_BLOCKS, chunk_bytes // self.memory.layout.block_bytes))
        return tuple(self.blocks[first : min(end, first + most)])


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

    def stop(self) -> None:
        """End everything, now and from now on."""
        verdict = Verdict(Release.WITHDRAWN, "unavailable", "the instance stops")
        with self._lock:
            self._stopped = verdict
            handles = [*self._offers, *self._expected]
        for handle in handles:
            self.refuse(handle, verdict)

    def owners(self) -> list[str]:
        """Owner of every lease that is held."""
        with self._lock:
            leases = [offer.lease for offer in self._offers.values()]
            return [lease.owner for lease in leases if lease.state is not LeaseState.RELEASED]

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
                raise _refused("the layouts of the blocks differ")
            offer.lease.open(taker, self._clock.now())
            offer.wake = wake
            return offer

    def give_up(self, fetch: Fetch, wake: Callable[[], None]) -> None:
        """A taker waits for its offer no longer."""
        with self._lock:
            if self._expected.get(Handle(fetch.handle)) == wake:
                del self._expected[Handle(fetch.handle)]

    def look(
        self, offer: Offer, first: int, end: int, chunk_bytes: int
    ) -> tuple[tuple[BlockId, ...], int | None]:
        """Blocks of ``[first, end)`` that can go now, and the number of all once complete. Raises
        Ended if the offer is to end."""
        with self._lock:
            if offer.verdict is not None:
                raise Ended(offer.verdict)
            total = None if offer.tail is None else len(offer.blocks)
            return offer.part(first, end, chunk_bytes), total

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
        """Tell the owner, then forget the offer: until then a withdrawal can wait for this."""
        try:
            self._call_soon(offer.on_release, verdict.reason.value)
        except RuntimeError:
            log.debug("the event loop is closed: nobody is left to hear of a release")
        offer.settled.set_result(None)
        with self._lock:
            del self._offers[offer.lease.id]

    def _remember(self, handle: Handle, verdict: Verdict) -> None:
        self._verdicts.setdefault(handle, verdict)
        while len(self._verdicts) > MAX_VERDICTS:
            del self._verdicts[next(iter(self._verdicts))]


def _nothing() -> None:
    """Wakes nobody."""


def _end(offer: Offer, verdict: Verdict) -> None:
    if offer.verdict is None:
        offer.verdict = verdict


def _refused(detail: str) -> Ended:
    return Ended(Verdict(Release.TAKER_LOST, "data_loss", detail))
