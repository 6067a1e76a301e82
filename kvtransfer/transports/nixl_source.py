"""The taker's side of NIXL: reads out of one giver's store, through an agent that takers share.

A read that cannot be stopped (``nixl_agent``) is ended together with its agent; what else is under
way there is let finish first, and goes on with a successor.
"""

import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import msgspec

from kvtransfer.channel import Channel
from kvtransfer.transports.nixl_agent import NixlAgent, Region, State
from kvtransfer.transports.transport import Extent, address_of, breaking, hear_parting
from triptych.core.clock import Clock
from triptych.core.errors import InstanceLost, TransferError

POST_BYTES = 8 << 20
"""Read at a time; between two such reads there is time for others and for second thoughts."""
BUSY_S = 5e-6
"""A look at a read that takes longer has moved bytes: the next one shall follow at once."""
SPIN_S = 50e-6
"""Looks follow each other in any case for so long: hardware is quicker than a nap."""
MIN_PAUSE_S, MAX_PAUSE_S = 20e-6, 500e-6
GRACE_S = 0.25
"""For a read that nobody wants any more to end by itself."""
NEIGHBOURS_S = 0.25
"""For the other reads of its agent to finish, if that must end."""


class Attached(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a taker must know of a store: secret, as it lets one read all of it."""

    metadata: bytes
    address: int
    length: int
    kind: str
    device: int


class Readers:
    """The agent that takers share, and its successors."""

    def __init__(self, name: str, backend: str) -> None:
        self._name = name
        self._backend = backend
        self._changed = threading.Condition()
        self._agent: NixlAgent | None = None
        self.num_retired = 0

    @contextmanager
    def reading(self) -> Iterator[NixlAgent]:
        """The agent to read with, for one read."""
        with self._changed:
            if self._agent is None:
                self._agent = NixlAgent(f"{self._name}-{secrets.token_hex(8)}", self._backend)
            agent = self._agent
            agent.num_reads += 1
        try:
            yield agent
        finally:
            self._leave(agent)

    def retire(self, agent: NixlAgent) -> None:
        """End ``agent``, by one whose read cannot be stopped otherwise. Reads that begin now have a
        successor; those under way have a moment to finish."""
        with self._changed:
            if self._agent is agent:
                self._agent = None
                self.num_retired += 1
            agent.num_reads -= 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: agent.num_reads == 0, NEIGHBOURS_S)
            agent.num_reads += 1
        agent.close()

    def close(self) -> None:
        """End the agent; nobody reads any more."""
        with self._changed:
            agent, self._agent = self._agent, None
        if agent is not None:
            agent.close()

    def _leave(self, agent: NixlAgent) -> None:
        with self._changed:
            agent.num_reads -= 1
            self._changed.notify_all()


class NixlSource:
    """A store of one giver, read by NIXL."""

    view = None

    def __init__(
        self, attached: Attached, channel: Channel, readers: Readers, timeout_s: float, clock: Clock
    ) -> None:
        self._attached = attached
        self._channel = channel
        self._readers = readers
        self._timeout_s = timeout_s
        self._clock = clock
        self._met: tuple[NixlAgent, str] | None = None
        self._held: dict[int, tuple[object, Region]] = {}
        """Own memory that is registered with that agent, by identity of what exports it."""

    def read(self, theirs: Sequence[Extent], ours: Sequence[memoryview]) -> None:
        """See ``transport.Source``."""
        for moves in _portions(theirs, ours):
            far = [self._far(offset, target.nbytes) for offset, target in moves]
            with breaking(self._channel), self._readers.reading() as agent:
                peer = self._peer(agent)
                near = [self._near(agent, target) for _, target in moves]
                handle = agent.start(peer, far, near)
                if handle is not None:
                    self._move(agent, handle)

    def close(self) -> None:
        """See ``transport.Source``."""
        met, self._met = self._met, None
        if met is not None:
            for _, region in self._held.values():
                met[0].let_go(region)
            self._held.clear()
            met[0].part(met[1])

    def _peer(self, agent: NixlAgent) -> str:
        """The giver's name to ``agent``, which is not always the same one."""
        if self._met is None or self._met[0] is not agent:
            self._held.clear()  # the other one has ended, and let go of everything
            self._met = agent, agent.meet(self._attached.metadata)
        return self._met[1]

    def _near(self, agent: NixlAgent, target: memoryview) -> Region:
        """Own memory. All that exports it is registered as long as this connection lasts."""
        if id(target.obj) not in self._held:
            self._held[id(target.obj)] = target.obj, agent.cover(target)
        return Region(address_of(target), target.nbytes)

    def _far(self, offset: int, length: int) -> Region:
        store = self._attached
        if offset + length > store.length:
            raise TransferError("chunk: bytes that the store does not have")
        return Region(store.address + offset, length, store.kind, store.device)

    def _move(self, agent: NixlAgent, handle: int) -> None:
        """Wait for a read. However this ends, nothing of it moves any more."""
        try:
            if not self._wait(agent, handle):
                raise InstanceLost("the owner of the memory is gone")
        except BaseException:
            self._stop(agent, handle)
            raise
        agent.finish(handle)

    def _wait(self, agent: NixlAgent, handle: int) -> bool:
        """Whether the read was done; else its owner is gone. A look moves bytes where no hardware
        does: looks follow each other while they have work, and come seldom when they have not."""
        pause_s, start_s = MIN_PAUSE_S, self._clock.now()
        look_s, until_s = start_s, start_s + self._timeout_s
        while (state := agent.state(handle)) is State.MOVING:
            now_s = self._clock.now()
            if now_s >= until_s:
                raise InstanceLost("the peer is silent: a read does not end")
            self._channel.check()
            if now_s - look_s > BUSY_S:
                pause_s = MIN_PAUSE_S
            elif now_s - start_s > SPIN_S:
                if self._channel.is_cut:  # some transports need the owner's help
                    hear_parting(self._channel)
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, MAX_PAUSE_S)
            look_s = self._clock.now()
        return state is State.DONE

    def _stop(self, agent: NixlAgent, handle: int) -> None:
        """Wait a moment for the end of a read, then end it with its agent."""
        until_s = self._clock.now() + GRACE_S
        is_moving = True
        try:
            while (
                is_moving := agent.state(handle) is State.MOVING
            ) and self._clock.now() < until_s:
                time.sleep(MIN_PAUSE_S)
        except InstanceLost:
            return  # the agent was ended by another
        except TransferError:
            is_moving = True  # as far as NIXL can say
        agent.finish(handle)
        if is_moving:
            self._readers.retire(agent)


def _portions(
    theirs: Sequence[Extent], ours: Sequence[memoryview]
) -> Iterator[list[tuple[int, memoryview]]]:
    """``(their offset, our memory)`` of equal lengths, up to ``POST_BYTES`` together."""
    moves: list[tuple[int, memoryview]] = []
    room, targets, target = POST_BYTES, iter(ours), memoryview(b"")
    for offset, length in theirs:
        end = offset + length
        while offset < end:
            while not target:
                target = next(targets)
            count = min(end - offset, len(target), room)
            moves.append((offset, target[:count]))
            target, offset, room = target[count:], offset + count, room - count
            if room == 0:
                yield moves
                moves, room = [], POST_BYTES
    if moves:
        yield moves
