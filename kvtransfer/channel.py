"""One authenticated connection: sealed frames both ways, payloads straight from and into memory.

Used by one thread, which another may ``wake``. Both sides prove the cluster's secret (a MAC over
two nonces), and every later frame carries a MAC over its number, header and body, so no frame
can be forged, changed, replayed, dropped or reordered unseen. A payload is covered by the tag that
announced it (``seal``). Nothing is encrypted. Knows frames and time-outs, not what a transfer is.
"""

import errno
import hmac
import math
import os
import secrets
import select
import socket
import struct
import threading
from collections.abc import Callable, Sequence

from kvtransfer import manifest
from kvtransfer.manifest import HEADER_BYTES, PREFIX_BYTES, Hello, Message, Welcome
from kvtransfer.seal import derive, frame_mac, payload_tag
from triptych.core.clock import Clock
from triptych.core.errors import DeadlineExceeded, InstanceLost, TransferError

Address = str | tuple[str, int]

MAX_VECTORS = 512
"""Buffers in one system call; IOV_MAX is 1,024."""
MAX_HELD = 16
"""Frames that wait for each other: the first is not to wait long."""
READ_AHEAD_BYTES = 4_096
"""Frames that came together are read together; so much of a payload may be copied once more."""


class Unreachable(InstanceLost):
    """Nobody listens at an address; another way may still lead to the instance."""


class Channel:
    """A non-blocking stream socket and its frames.

    Raises InstanceLost when the peer closes or is silent for ``timeout_s``, DeadlineExceeded past
    ``deadline_s``, TransferError for a frame that is wrong, and whatever ``on_wake`` raises.
    """

    def __init__(self, sock: socket.socket, clock: Clock, timeout_s: float) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._clock = clock
        self._timeout_s = timeout_s
        try:
            self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        except OSError:
            sock.close()
            raise
        self._closing = threading.Lock()
        self._is_closed = False
        self._keys: tuple[bytes, bytes] | None = None
        self._payload_key = b""
        self._enclosed: list[int] = []
        self._held: list[memoryview] = []
        """Frames that go with the next one that is not held."""
        self._num_wakes = 0
        self._ahead = memoryview(b"")
        """Read from the socket, and not yet by us."""
        self.num_sent = 0
        """Frames sent under the present key."""
        self.num_received = 0
        self.deadline_s = math.inf
        """Point of the clock at which waiting ends with DeadlineExceeded."""
        self.on_wake: Callable[[], None] = _nothing
        """Called on the channel's thread whenever it was woken while it waited; may raise."""
        self.is_between_frames = True
        """Whether what was sent so far ends with a whole frame."""
        self.takes_descriptors = False
        """Whether the peer may pass file descriptors; they gather in ``descriptors``."""
        self.descriptors: list[int] = []

    def wake(self) -> None:
        """Make the channel's thread call ``on_wake`` soon. Any thread, any time."""
        with self._closing:
            if not self._is_closed:
                os.eventfd_write(self._wake_fd, 1)

    def close(self) -> None:
        """Cut the connection; idempotent. Not while another thread uses the channel."""
        with self._closing:
            if self._is_closed:
                return
            self._is_closed = True
            os.close(self._wake_fd)
            self._sock.close()
        while self.descriptors:
            os.close(self.descriptors.pop())

    def linger(self) -> None:
        """Say that nothing follows and wait (``timeout_s`` at most) until the peer has closed, so
        that what was sent last is not lost by a reset."""
        until_s = self._clock.now() + self._timeout_s
        self._ahead = memoryview(b"")
        try:
            self._sock.shutdown(socket.SHUT_WR)
            while True:
                try:
                    if not self._sock.recv(65_536):
                        return
                except BlockingIOError:
                    self.wait(select.POLLIN, until_s, patient=True)  # a late wake ends nothing
                    if self._clock.now() >= until_s:
                        return
        except OSError:
            return

    def connect(self, address: Address) -> None:
        """Reach a listening socket. Raises Unreachable, or InstanceLost if it does not answer."""
        until_s = self._clock.now() + self._timeout_s
        while (code := self._sock.connect_ex(address)) not in (0, errno.EISCONN):
            if code not in (errno.EINPROGRESS, errno.EALREADY, errno.EAGAIN):
                raise Unreachable(f"cannot connect: {os.strerror(code)}")
            if self._clock.now() >= until_s:
                raise InstanceLost("no answer to a connection")
            # A TCP socket is writable once its fate is known. A Unix socket says EAGAIN while the
            # listener's queue is full, and only trying again tells.
            events = 0 if code == errno.EAGAIN else select.POLLOUT
            self.wait(events, min(until_s, self._clock.now() + 0.05), patient=True)

    # -- sending

    @property
    def is_unix(self) -> bool:
        """Whether the peer is on this machine and may be passed descriptors."""
        return self._sock.family == socket.AF_UNIX

    def enclose(self, descriptor: int) -> None:
        """Pass a file descriptor with the next frame. It stays the caller's."""
        self._enclosed.append(descriptor)

    def tag(self, number: int, parts: Sequence[memoryview]) -> bytes:
        """Tag of bytes that the ``number``-th frame of this session's giver announces."""
        return payload_tag(self._payload_key, number, parts)

    def send(
        self, message: Message, payload: Sequence[memoryview] = (), *, held: bool = False
    ) -> None:
        """Send one frame and the payload behind it; returns when the kernel has all of it. If
        ``held``, it goes with the next frame, or when we wait: the peer wakes up once for all."""
        prefix, body = manifest.encode(message, sum(len(part) for part in payload))
        mac = self._mac(0, self.num_sent, prefix, body)
        self.num_sent += 1
        self._held += [memoryview(prefix + mac + body), *payload]
        if not held or len(self._held) >= MAX_HELD:
            self.flush()

    def flush(self) -> None:
        """Send what was held back."""
        parts, self._held = self._held, []
        if parts:
            self._write(parts)

    def _write(self, parts: list[memoryview]) -> None:
        self.is_between_frames = False
        ancillary = [_rights(self._enclosed)] if self._enclosed else []
        self._enclosed = []
        at, until_s = 0, self._clock.now() + self._timeout_s
        while at < len(parts):
            try:
                count = self._sock.sendmsg(parts[at : at + MAX_VECTORS], ancillary)
            except BlockingIOError:
                self.wait(select.POLLOUT, until_s)
                continue
            except OSError as error:
                raise InstanceLost(f"connection: {error.strerror}") from error
            ancillary, until_s = [], self._clock.now() + self._timeout_s
            at = _advance(parts, at, count)
        self.is_between_frames = True

    # -- receiving

    def receive(self, timeout_s: float | None = None) -> tuple[Message, int]:
        """The next message and the bytes of payload behind it, which the caller must read with
        ``receive_payload``. The whole frame must be here within ``timeout_s``."""
        prefix, header, body = self._receive_frame(timeout_s, manifest.MAX_BODY_BYTES)
        self._verify(header, body)
        return manifest.decode(prefix.kind, body), prefix.payload_bytes

    def receive_payload(self, targets: Sequence[memoryview]) -> None:
        """Fill ``targets`` with the payload behind the last message, without a copy between."""
        parts, at = list(targets), 0
        until_s = self._clock.now() + self._timeout_s
        while at < len(parts) and self._ahead:
            piece = self._take_ahead(len(parts[at]))
            parts[at][: len(piece)] = piece
            at = _advance(parts, at, len(piece))
        while at < len(parts):
            try:
                count = self._sock.recvmsg_into(parts[at : at + MAX_VECTORS])[0]
            except BlockingIOError:
                self.wait(select.POLLIN, until_s)
                continue
            except OSError as error:
                raise InstanceLost(f"connection: {error.strerror}") from error
            if count == 0:
                raise InstanceLost("the peer closed the connection inside a payload")
            until_s = self._clock.now() + self._timeout_s
            at = _advance(parts, at, count)

    def has_news(self) -> bool:
        """Whether there is something to read (or the peer has closed), without waiting."""
        if self._ahead:
            return True
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        return bool(poll.poll(0))

    @property
    def is_cut(self) -> bool:
        """Whether the peer has closed, whatever of its words is still to be read."""
        poll = select.poll()
        poll.register(self._sock, select.POLLRDHUP)
        return bool(poll.poll(0))

    def wait(self, events: int, until_s: float, *, patient: bool = False) -> bool:
        """Wait until the socket is ready for ``events``: True, or was woken: False (``on_wake``
        has run). At ``until_s`` the peer counts as lost; with ``patient``, False instead."""
        if events & select.POLLIN:
            num_wakes = self._num_wakes
            self.flush()  # the peer may answer to it
            if self._num_wakes != num_wakes:
                return False
        now_s = self._clock.now()
        if now_s >= self.deadline_s:
            raise DeadlineExceeded("a transfer took too long")
        if now_s >= until_s:
            if patient:
                return False
            raise InstanceLost("the peer is silent")
        if events & select.POLLIN and self._ahead:
            self.check()
            return True
        poll = select.poll()
        poll.register(self._wake_fd, select.POLLIN)
        if events:
            poll.register(self._sock, events)
        rest_s = min(until_s, self.deadline_s) - now_s
        ready = {fd for fd, _ in poll.poll(None if rest_s == math.inf else rest_s * 1000)}
        if self._wake_fd in ready:
            ready.discard(self._wake_fd)
            self._woken()
        return bool(ready)

    def check(self) -> None:
        """Raise what would end a wait (the deadline, or what ``on_wake`` raises), without one."""
        if self._clock.now() >= self.deadline_s:
            raise DeadlineExceeded("a transfer took too long")
        poll = select.poll()
        poll.register(self._wake_fd, select.POLLIN)
        if poll.poll(0):
            self._woken()

    def _woken(self) -> None:
        os.eventfd_read(self._wake_fd)
        self._num_wakes += 1
        self.on_wake()

    def _receive_frame(
        self, timeout_s: float | None, max_body_bytes: int
    ) -> tuple[manifest.Prefix, bytes, bytes]:
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        until_s = self._clock.now() + limit_s
        header = self._read(HEADER_BYTES, until_s)
        prefix = manifest.parse_prefix(header[:PREFIX_BYTES], max_body_bytes)
        # A peer may be idle between frames for as long as the caller allows, not inside one.
        until_s = min(until_s, self._clock.now() + self._timeout_s)
        return prefix, header, self._read(prefix.body_bytes, until_s)

    def _read(self, num_bytes: int, until_s: float) -> bytes:
        data = bytes(self._take_ahead(num_bytes))
        if data:  # the rest belongs to it, and must not be long in coming
            until_s = min(until_s, self._clock.now() + self._timeout_s)
        while len(data) < num_bytes:
            try:
                self._ahead = memoryview(self._recv(max(num_bytes - len(data), READ_AHEAD_BYTES)))
            except BlockingIOError:
                self.wait(select.POLLIN, until_s)
                continue
            except OSError as error:
                raise InstanceLost(f"connection: {error.strerror}") from error
            if not self._ahead:
                raise InstanceLost("the peer closed the connection")
            data += self._take_ahead(num_bytes - len(data))
            until_s = min(until_s, self._clock.now() + self._timeout_s)
        return data

    def _take_ahead(self, num_bytes: int) -> memoryview:
        """Up to so many of the bytes that were read ahead."""
        piece, self._ahead = self._ahead[:num_bytes], self._ahead[num_bytes:]
        return piece

    def _recv(self, num_bytes: int) -> bytes:
        if not self.takes_descriptors:
            return self._sock.recv(num_bytes)
        piece, fds, _, _ = socket.recv_fds(self._sock, num_bytes, 1)
        self.descriptors.extend(fds)
        return piece

    # -- keys

    def greet(self, secret: bytes, own: str) -> str:
        """The taker's side of the handshake; the peer's name. Raises TransferError."""
        nonce = secrets.token_bytes(32)
        hello_key = derive(secret, b"hello")
        self._keys = (hello_key, hello_key)
        self.send(Hello(own, nonce))
        prefix, header, body = self._receive_frame(None, manifest.MAX_GREETING_BYTES)
        message = manifest.decode(prefix.kind, body)
        if not isinstance(message, Welcome):
            raise TransferError("handshake: the peer did not welcome us")
        session = derive(secret, b"session", nonce, message.nonce, own, message.instance)
        self._keys = (derive(session, b"take"), derive(session, b"give"))
        self._payload_key = derive(session, b"payload")
        self.num_sent = 0
        self._verify(header, body)
        return message.instance

    def welcome(self, secret: bytes, own: str) -> str:
        """The giver's side; the name that the peer claims. Its knowledge of the secret is fresh
        only once its next frame is received. Raises TransferError."""
        hello_key = derive(secret, b"hello")
        self._keys = (hello_key, hello_key)
        prefix, header, body = self._receive_frame(None, manifest.MAX_GREETING_BYTES)
        self._verify(header, body)
        message = manifest.decode(prefix.kind, body)
        if not isinstance(message, Hello):
            raise TransferError("handshake: the peer did not greet")
        nonce = secrets.token_bytes(32)
        session = derive(secret, b"session", message.nonce, nonce, message.instance, own)
        self._keys = (derive(session, b"give"), derive(session, b"take"))
        self._payload_key = derive(session, b"payload")
        self.num_received = 0
        self.send(Welcome(own, nonce))
        return message.instance

    def _mac(self, direction: int, number: int, prefix: bytes, body: bytes) -> bytes:
        if self._keys is None:
            raise TransferError("channel: a frame before the handshake")
        return frame_mac(self._keys[direction], number, prefix, body)

    def _verify(self, header: bytes, body: bytes) -> None:
        expected = self._mac(1, self.num_received, header[:PREFIX_BYTES], body)
        if not hmac.compare_digest(expected, header[PREFIX_BYTES:]):
            raise TransferError("frame: wrong MAC")
        self.num_received += 1


def _nothing() -> None:
    """The default of ``on_wake``."""


def _rights(descriptors: Sequence[int]) -> tuple[int, int, bytes]:
    packed = struct.pack(f"{len(descriptors)}i", *descriptors)
    return socket.SOL_SOCKET, socket.SCM_RIGHTS, packed


def _advance(parts: list[memoryview], at: int, count: int) -> int:
    """Skip ``count`` bytes of ``parts[at:]``; the index of the first part that is not done."""
    while at < len(parts) and count >= len(parts[at]):
        count -= len(parts[at])
        at += 1
    if count:
        parts[at] = parts[at][count:]
    return at
