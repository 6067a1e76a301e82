"""Where the two ranks of a process group find each other: keys and values over one socket.

In place of torch's TCPStore, whose calls wait for ever when the process that hosts it is silent.
Every wait ends here after ``timeout_s``. The giver listens, the taker shows a token that only the
manifest has told it; nothing is encrypted. Knows sockets and bytes; nothing of groups.
"""

import contextlib
import hmac
import secrets
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

from triptych.core.errors import InstanceLost, TransferError

TOKEN_BYTES = 32
MAX_FIELD_BYTES = 65_536
TICK_S = 0.05
MAX_CALLERS = 16
"""Connections that may be about to show the token; the oldest makes way for another."""
_LENGTHS = struct.Struct("<II")


class Meeting:
    """A listener for one taker, and the token that it will show."""

    def __init__(self, host: str) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.host = host
        self.token = secrets.token_bytes(TOKEN_BYTES)
        self._listener = socket.create_server((host, 0), family=family)
        self._listener.settimeout(TICK_S)
        self.port: int = self._listener.getsockname()[1]

    def await_taker(self, timeout_s: float, check: Callable[[], None]) -> "Exchange":
        """The taker's connection; nobody else is let in. ``check`` may end the waiting by what it
        raises. Raises InstanceLost."""
        until_s = time.monotonic() + timeout_s
        callers: dict[socket.socket, bytes] = {}
        try:
            while time.monotonic() < until_s:
                check()
                sock = self._hear(callers)
                if sock is not None:
                    return Exchange(sock, timeout_s)
        except (OSError, ValueError) as error:
            raise InstanceLost("the instance stops") from error
        finally:
            for stranger in callers:
                stranger.close()
        raise InstanceLost("the taker does not join the process group")

    def _hear(self, callers: dict[socket.socket, bytes]) -> socket.socket | None:
        """Wait a moment for callers, and for more of what each has shown of the token. The one who
        has shown all of it; who is silent is in nobody's way."""
        with selectors.DefaultSelector() as selector:
            for sock in (self._listener, *callers):
                selector.register(sock, selectors.EVENT_READ)
            ready = {key.fileobj for key, _ in selector.select(TICK_S)}
        for sock in [caller for caller in callers if caller in ready]:
            shown = callers.pop(sock)
            part = _more(sock, TOKEN_BYTES - len(shown))
            if hmac.compare_digest(shown + part, self.token):
                return sock
            if part and len(shown + part) < TOKEN_BYTES:
                callers[sock] = shown + part
            else:
                sock.close()
        if self._listener in ready:
            callers[self._listener.accept()[0]] = b""
        if len(callers) > MAX_CALLERS:
            oldest = next(iter(callers))
            del callers[oldest]
            oldest.close()
        return None

    def close(self) -> None:
        """Listen no more. Idempotent."""
        self._listener.close()


def _more(sock: socket.socket, num_bytes: int) -> bytes:
    """What a caller has said, of which there is some; nothing if it left."""
    try:
        return sock.recv(num_bytes)
    except OSError:
        return b""


def meet(host: str, port: int, token: bytes, timeout_s: float) -> "Exchange":
    """The taker's side. Raises InstanceLost."""
    try:
        sock = socket.create_connection((host, port), timeout_s)
        sock.sendall(token)
    except OSError as error:
        raise InstanceLost("the giver's rendezvous does not answer") from error
    return Exchange(sock, timeout_s)


class Exchange:
    """What either side has set, both can get. Any thread may call anything."""

    def __init__(self, sock: socket.socket, timeout_s: float) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock = sock
        self._timeout_s = timeout_s
        self._known: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def set(self, key: str, value: bytes) -> None:
        """Tell the other side. Raises InstanceLost."""
        name = key.encode()
        with self._lock, self._bounded():
            self._known[key] = value
            self._sock.sendall(_LENGTHS.pack(len(name), len(value)) + name + value)

    def get(self, key: str) -> bytes:
        """Wait for a value. Raises InstanceLost if none comes, TransferError for nonsense."""
        until_s = time.monotonic() + self._timeout_s
        with self._lock, self._bounded():
            while key not in self._known:
                if time.monotonic() >= until_s:
                    raise TimeoutError
                name_bytes, value_bytes = _LENGTHS.unpack(self._read(_LENGTHS.size))
                if max(name_bytes, value_bytes) > MAX_FIELD_BYTES:
                    raise TransferError("rendezvous: a value that is too long")
                name = self._read(name_bytes).decode(errors="replace")
                self._known[name] = self._read(value_bytes)
            return self._known[key]

    def has(self, key: str) -> bool:
        """Whether a value is known already."""
        return key in self._known

    def close(self) -> None:
        """End it. Idempotent."""
        self._sock.close()

    def _read(self, num_bytes: int) -> bytes:
        data = bytearray()
        while len(data) < num_bytes:
            part = self._sock.recv(num_bytes - len(data))
            if not part:
                raise ConnectionError
            data += part
        return bytes(data)

    @contextlib.contextmanager
    def _bounded(self) -> Iterator[None]:
        try:
            self._sock.settimeout(self._timeout_s)
            yield
        except OSError as error:
            raise InstanceLost("the peer left the rendezvous, or is silent") from error
