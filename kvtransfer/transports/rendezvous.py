"""Where the two ranks of a process group find each other: keys and values over one socket.

In place of torch's TCPStore, whose calls wait for ever when the process that hosts it is silent.
Every wait ends here after ``timeout_s``. The giver listens, the taker shows a token that only the
manifest has told it; nothing is encrypted. Knows sockets and bytes; nothing of groups.
"""

import contextlib
import hmac
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

from triptych.core.errors import InstanceLost, TransferError

TOKEN_BYTES = 32
MAX_FIELD_BYTES = 65_536
TICK_S = 0.05
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
        while time.monotonic() < until_s:
            check()
            try:
                sock = self._listener.accept()[0]
            except TimeoutError:
                continue
            except OSError as error:
                raise InstanceLost("the instance stops") from error
            try:
                sock.settimeout(timeout_s)
                shown = sock.recv(TOKEN_BYTES, socket.MSG_WAITALL)
            except OSError:
                shown = b""
            if hmac.compare_digest(shown, self.token):
                return Exchange(sock, timeout_s)
            sock.close()
        raise InstanceLost("the taker does not join the process group")

    def close(self) -> None:
        """Listen no more. Idempotent."""
        self._listener.close()


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
        data = self._sock.recv(num_bytes, socket.MSG_WAITALL) if num_bytes else b""
        if len(data) < num_bytes:
            raise ConnectionError
        return data

    @contextlib.contextmanager
    def _bounded(self) -> Iterator[None]:
        try:
            self._sock.settimeout(self._timeout_s)
            yield
        except OSError as error:
            raise InstanceLost("the peer left the rendezvous, or is silent") from error
