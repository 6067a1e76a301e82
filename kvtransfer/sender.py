"""The giving side: an outbox, and the listeners through which takers come.

Engine state is touched only through ``call_soon``. Does not know what the blocks mean.
"""

import asyncio
import logging
import os
import select
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any

from kvtransfer.channel import Channel
from kvtransfer.giver import Conversation
from kvtransfer.promises import Promises
from kvtransfer.staging import Staging
from kvtransfer.transports import shm, tcp
from kvtransfer.transports.transport import Carrier, Transport, machine_id
from triptych.core.census import Holding
from triptych.core.clock import Clock
from triptych.core.config import TransferConfig
from triptych.core.errors import InstanceLost, TransferError
from triptych.core.handoff import Endpoint
from triptych.core.ids import InstanceId
from triptych.core.ports import BlockMemory

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 1024
ADDRESSED = ("inproc", "shm", "tcp")
"""Ways that an endpoint offers by its addresses; the others it names."""


class Outbox(Promises):
    """Promises that takers come for over sockets. Methods may be called on any thread."""

    def __init__(
        self,
        instance: InstanceId,
        config: TransferConfig,
        secret: bytes,
        clock: Clock,
        call_soon: Callable[..., Any],
        ways: Sequence[Transport],
    ) -> None:
        super().__init__(instance, config, clock, call_soon)
        self.secret = secret
        self.staging = Staging()
        self._lock = threading.Lock()
        self._ways = {way.name: way for way in ways}
        self._conversations: set[Conversation] = set()
        self._stores: list[BlockMemory] = []
        """Every store ever offered; its index is its number in manifests."""
        self._listeners: list[socket.socket] = []
        self._listening: threading.Thread | None = None
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.is_closing = False

    # -- the instance's side

    def start(self) -> Endpoint:
        """Listen on ``config.host`` and on an abstract Unix socket; where takers find us."""
        over_tcp = tcp.listen(self.config.host)
        over_unix, path = shm.listen()
        self._listeners = [over_tcp, over_unix]
        self._listening = threading.Thread(
            target=self._listen, name=f"{self.instance} outbox", daemon=True
        )
        self._listening.start()
        port: int = over_tcp.getsockname()[1]
        ways = tuple(name for name in self._ways if name not in ADDRESSED)
        return Endpoint(self.config.host, port, path, machine_id(), ways)

    def census(self) -> list[Holding]:
        """Leases by owner, and takers that are served or wait to be."""
        leases = super().census()
        with self._lock:
            takers = [talk.peer for talk in self._conversations if talk.is_serving]
        return leases + [
            Holding("taker", taker, takers.count(taker)) for taker in sorted(set(takers))
        ]

    async def close(self) -> None:
        """Withdraw everything, cut all connections and end the threads. Idempotent."""
        with self._lock:
            if self.is_closing:
                return
            self.is_closing = True
            os.eventfd_write(self._wake_fd, 1)
            talks = list(self._conversations)
        self.offers.stop()
        for talk in talks:
            talk.channel.wake()
        await asyncio.to_thread(self._join, talks)
        for listener in self._listeners:
            listener.close()
        for way in self._ways.values():
            way.close()
        self.staging.close()
        os.close(self._wake_fd)

    def _join(self, talks: list[Conversation]) -> None:
        if self._listening is not None:
            self._listening.join()
        for talk in talks:
            talk.thread.join()

    # -- the side of takers

    def connect(self) -> socket.socket:
        """A connected socket to this outbox for the same process. Raises InstanceLost."""
        ours, theirs = socket.socketpair()
        if not self._admit(ours):
            theirs.close()
            raise InstanceLost("the instance stops or has too many connections")
        return theirs

    def memory(self, number: int) -> BlockMemory:
        """A store by its number. Raises TransferError."""
        if number >= len(self._stores):
            raise TransferError("manifest: names no store of the instance")
        return self._stores[number]

    # -- the side of conversations

    def number(self, memory: BlockMemory) -> int:
        """Number of a store."""
        with self._lock:
            for number, known in enumerate(self._stores):
                if known is memory:
                    return number
            self._stores.append(memory)
            return len(self._stores) - 1

    def carrier(self, via: str, channel: Channel) -> Carrier:
        """What carries bytes to the taker at the other end of ``channel``. Raises TransferError."""
        if via not in self._ways:
            raise TransferError(f"fetch: no transport {via} here")
        return self._ways[via].carrier(channel)

    def forget(self, talk: Conversation) -> None:
        """A connection is over."""
        with self._lock:
            self._conversations.discard(talk)

    def _listen(self) -> None:
        wake, poll = select.poll(), select.poll()
        poll.register(self._wake_fd, select.POLLIN)
        for listener in self._listeners:
            poll.register(listener, select.POLLIN)
        wake.register(self._wake_fd, select.POLLIN)
        pause_ms = self.config.heartbeat_s * 1000
        while not self.is_closing:
            poll.poll(pause_ms)
            for listener in self._listeners:
                try:
                    self._greet(listener.accept()[0])
                except BlockingIOError:
                    continue
                except OSError as error:  # out of descriptors, or the peer is gone already
                    log.warning("cannot accept a connection: %s", error.strerror)
                    wake.poll(pause_ms)
            self.offers.sweep()

    def _greet(self, sock: socket.socket) -> None:
        is_unix = sock.family == socket.AF_UNIX
        if is_unix and not shm.is_own_user(sock):
            sock.close()
            return
        if not is_unix:
            tcp.tune(sock, self.config.timeout_s)
        self._admit(sock)

    def _admit(self, sock: socket.socket) -> bool:
        with self._lock:
            if self.is_closing or len(self._conversations) >= MAX_CONNECTIONS:
                sock.close()
                return False
            talk = Conversation(self, sock)
            try:
                talk.thread.start()
            except RuntimeError as error:  # out of threads: the taker may come again
                log.warning("cannot serve a connection: %s", error)
                talk.channel.close()
                return False
            self._conversations.add(talk)
            return True
