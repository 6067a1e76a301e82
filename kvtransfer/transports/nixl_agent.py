"""One NIXL agent: memory registered with it, agents it knows, reads out of their memory.

The progress thread that NIXL starts by default burns a core, so there is none: whoever waits looks
(``state``), and an owner that others read from is asked now and then to ``progress``. NIXL is found
at run time; without it there is no agent. Knows addresses and NIXL's words, no blocks, no sockets.
"""

import contextlib
import importlib
import importlib.util
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from enum import Enum
from typing import Any, NamedTuple

from kvtransfer.transports.transport import address_of
from triptych.core.errors import InstanceLost, TransferError

PACKAGES = ("nixl_cu13", "nixl_cu12")
"""NIXL's builds. Both move host memory without a GPU."""
MAX_UNUSED = 16
"""Registrations that are kept while nothing uses them. Stores are few, buffers are not."""


class Region(NamedTuple):
    """A run of memory: ``kind`` is ``DRAM`` or ``VRAM`` of GPU ``device``."""

    address: int
    length: int
    kind: str = "DRAM"
    device: int = 0


class _Registered:
    """Memory that NIXL knows."""

    __slots__ = ("descriptors", "keep", "num_users", "region")

    def __init__(self, region: Region, descriptors: Any, keep: object) -> None:
        self.region = region
        self.descriptors = descriptors
        self.keep = keep
        """What keeps the memory from being unmapped."""
        self.num_users = 0


class State(Enum):
    """How a read stands."""

    DONE = "done"
    MOVING = "moving"
    LOST = "lost"
    """The owner of the memory is gone; nothing of the read moves any more."""


def is_installed() -> bool:
    """Whether NIXL can be imported, as far as can be told without importing it."""
    return any(importlib.util.find_spec(name) is not None for name in PACKAGES)


class NixlAgent:
    """An agent of a name that is unique in the world. Any thread may call anything.

    Raises InstanceLost for an owner that is gone or an agent that is closed, TransferError for what
    NIXL refuses, also to start with ``backend``.
    """

    def __init__(self, name: str, backend: str) -> None:
        api = _load()
        self._errors = _errors_of(api)
        self._bindings = api._bindings
        self._lock = threading.Lock()
        """Around every call, so that one that waits for another holds no interpreter lock."""
        self._progressing = threading.Lock()
        self._registered: dict[int, _Registered] = {}
        """By address; what was used last stands last."""
        self._peers: dict[str, int] = {}
        """Known agents and how many connections use each."""
        settings = api.nixl_agent_config(enable_prog_thread=False, backends=[backend])
        try:
            self._nixl = api.nixl_agent(name, settings)
        except self._errors as error:
            raise TransferError(f"transfer.nixl_backend={backend}: {error}") from error
        if backend not in self._nixl.backends:
            raise TransferError(f"transfer.nixl_backend={backend}: NIXL has no such plugin here")
        self.num_registered = 0
        """Registrations ever made."""
        self.num_reads = 0
        """Reads under way, as those who read count them."""

    # -- own memory

    def hold(self, region: Region, keep: object) -> None:
        """Make ``region`` usable for transfers until ``let_go``; registered only if it is not yet.
        ``keep`` holds its memory."""
        with self._calling() as nixl:
            self._use(nixl, region, keep)

    def cover(self, view: memoryview) -> Region:
        """Hold the whole of the host memory that ``view`` is a part of: what exports it, be it a
        mapping or an array."""
        whole = memoryview(view.obj).cast("B")
        region = Region(address_of(whole), whole.nbytes)
        self.hold(region, whole)
        return region

    def let_go(self, region: Region) -> None:
        """One who held ``region`` needs it no longer. It stays registered while there is room."""
        with contextlib.suppress(InstanceLost), self._calling() as nixl:
            self._registered[region.address].num_users -= 1
            unused = [known for known in self._registered.values() if known.num_users == 0]
            for known in unused[:-MAX_UNUSED]:
                self._deregister(nixl, known)

    def metadata(self) -> bytes:
        """What another agent must know to read from this one. A secret, and never logged."""
        with self._calling() as nixl:
            return bytes(nixl.get_agent_metadata())

    def progress(self) -> None:
        """Let transports that need the owner's processor (TCP) work on what is asked of them.
        Many may ask at once: while one does, the others need not."""
        if self._progressing.acquire(blocking=False):
            try:
                with self._calling() as nixl:
                    nixl.get_new_notifs()
            finally:
                self._progressing.release()

    # -- other agents

    def meet(self, metadata: bytes) -> str:
        """Know another agent (by more of its memory, if it is known); its name. Ends with
        ``part``."""
        with self._calling() as nixl:
            try:
                name: str = nixl.add_remote_agent(metadata).decode()
            except self._bindings.nixlBackendError as error:  # it connects at once
                raise InstanceLost("the owner of the memory does not answer") from error
            self._peers[name] = self._peers.get(name, 0) + 1
            return name

    def part(self, peer: str) -> None:
        """One who met ``peer`` needs it no longer; with the last one the connection ends."""
        with contextlib.suppress(InstanceLost, TransferError), self._calling() as nixl:
            self._peers[peer] -= 1
            if self._peers[peer] == 0:
                del self._peers[peer]
                nixl.remove_remote_agent(peer)

    def start(self, peer: str, theirs: Sequence[Region], ours: Sequence[Region]) -> int | None:
        """Read ``theirs`` (of one kind) into ``ours``, pairwise of equal lengths; the handle, or
        None if that is done already."""
        near, far = ([region[:2] + region[3:] for region in side] for side in (ours, theirs))
        with self._calling() as nixl:
            handle: int = nixl.agent.createXferReq(
                self._bindings.NIXL_READ,
                nixl.get_xfer_descs(near, ours[0].kind),
                nixl.get_xfer_descs(far, theirs[0].kind),
                peer,
                b"",
                [],
            )
            try:
                posted = nixl.agent.postXferReq(handle, b"")
            except self._errors:
                self._release(nixl, handle)
                raise
            if posted == self._bindings.NIXL_SUCCESS:
                self._release(nixl, handle)
                return None
            return handle

    def state(self, handle: int) -> State:
        """How a read stands; looking is what moves it. Raises TransferError if NIXL cannot say,
        which does not mean that nothing moves."""
        with self._calling() as nixl:
            try:
                found = nixl.agent.getXferStatus(handle)
            except self._bindings.nixlRemoteDisconnectError:
                return State.LOST
            return State.DONE if found == self._bindings.NIXL_SUCCESS else State.MOVING

    def finish(self, handle: int) -> None:
        """Forget a read that is over."""
        with contextlib.suppress(InstanceLost), self._calling() as nixl:
            self._release(nixl, handle)

    def close(self) -> None:
        """End the agent: nothing is read or written through it any more. Idempotent.

        This is also the only way to stop a read whose owner is silent: NIXL says that it has
        cancelled one, and it writes the bytes nevertheless if they come later."""
        with self._lock:
            nixl, self._nixl = self._nixl, None
            while nixl is not None and self._registered:
                self._deregister(nixl, next(iter(self._registered.values())))
            if nixl is not None:
                nixl.agent = None  # tracebacks of its errors may hold the rest

    # -- inside

    @contextlib.contextmanager
    def _calling(self) -> Iterator[Any]:
        with self._lock:
            if self._nixl is None:
                raise InstanceLost("the agent was closed")
            try:
                yield self._nixl
            except self._bindings.nixlRemoteDisconnectError as error:
                raise InstanceLost("the owner of the memory is gone") from error
            except self._errors as error:
                raise TransferError(f"nixl: {error}") from error

    def _use(self, nixl: Any, region: Region, keep: object) -> None:
        known = self._registered.pop(region.address, None)
        if known is not None and known.region != region:  # a larger mapping took its place
            self._deregister(nixl, known)
            known = None
        if known is None:
            rows = [(region.address, region.length, region.device, "")]
            known = _Registered(region, nixl.register_memory(rows, region.kind), keep)
            self.num_registered += 1
        known.num_users += 1
        self._registered[region.address] = known

    def _deregister(self, nixl: Any, known: _Registered) -> None:
        self._registered.pop(known.region.address, None)
        with contextlib.suppress(*self._errors):
            nixl.deregister_memory(known.descriptors)

    def _release(self, nixl: Any, handle: int) -> None:
        with contextlib.suppress(*self._errors):
            nixl.agent.releaseXferReq(handle)


def _load() -> Any:
    """NIXL's Python module. Raises TransferError if there is none that works."""
    for name in PACKAGES:
        if importlib.util.find_spec(name) is None:
            continue
        os.environ.setdefault("UCX_LOG_FILE", "stderr")  # standard output is not its own
        try:
            api: Any = importlib.import_module(f"{name}._api")
            api._bindings = importlib.import_module(f"{name}._bindings")
        except ImportError as error:
            raise TransferError(f"nixl does not start: {error}") from error
        _hush()
        return api
    raise TransferError("nixl is not installed")


def _hush() -> None:
    """NIXL brings a handler that writes to standard output, which is not its own."""
    log = logging.getLogger("nixl")
    for handler in list(log.handlers):
        log.removeHandler(handler)
    log.setLevel(logging.WARNING)
    log.propagate = True


def _errors_of(api: Any) -> tuple[type[Exception], ...]:
    found = vars(api._bindings).values()
    return tuple(one for one in found if isinstance(one, type) and issubclass(one, Exception))
