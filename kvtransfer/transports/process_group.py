"""A process group of two, made and used through torch.distributed: rank 0 sends, rank 1 receives.

There is no world and no default group: instances come and go. Any backend of torch.distributed will
do that can send and receive; NCCL's rules are kept (no tags, the same messages on both sides in the
same order, all from one thread). On a GPU messages pass through device memory on a side stream: that
part was written for NCCL and has not been run. Knows messages; nothing of blocks, leases or sockets.
"""

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from triptych.core.errors import InstanceLost, TransferError

NCCL = "nccl"
NEVER = timedelta(days=1)
"""NCCL's own watchdog ends the whole process after its time-out; ours ends the group."""
PAUSE_S = 50e-6

Parts = Sequence[memoryview]
"""One message: its bytes in order. Of one part it goes without a copy on the host."""


def is_usable(backend: str) -> bool:
    """Whether torch.distributed has ``backend`` here. For NCCL without a driver, torch is not even
    imported."""
    if backend == NCCL and not Path("/proc/driver/nvidia/version").exists():
        return False
    try:
        import torch  # noqa: PLC0415  (seconds; many processes never need it)
        from torch import distributed  # noqa: PLC0415
    except ImportError:
        return False
    if not distributed.is_available():
        return False
    if backend == NCCL:
        return torch.cuda.is_available() and distributed.is_nccl_available()
    return backend == "gloo" or backend.upper() in distributed.Backend._plugins


def host_store(host: str, timeout_s: float) -> tuple[Any, int]:
    """A store on a free port of ``host`` where two ranks find each other; it and the port."""
    from torch import distributed  # noqa: PLC0415

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, 0), family=family)
    port: int = listener.getsockname()[1]
    wait = timedelta(seconds=timeout_s)
    store = distributed.TCPStore(
        host,
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=wait,
        master_listen_fd=listener.detach(),
    )
    return store, port


def reach_store(host: str, port: int, timeout_s: float) -> Any:
    """The store of another process. Raises InstanceLost."""
    from torch import distributed  # noqa: PLC0415

    wait = timedelta(seconds=timeout_s)
    try:
        return distributed.TCPStore(host, port, is_master=False, timeout=wait)
    except RuntimeError as error:
        raise InstanceLost("the peer's rendezvous does not answer") from error


class Pair:
    """This process and one other. ``check`` is called while it waits for a device and may raise.

    Raises InstanceLost if the other is gone or silent for ``timeout_s``; the group is of no use
    then. Once it is closed, nothing is written into memory that was to be received into.
    """

    def __init__(
        self, backend: str, store: Any, prefix: str, rank: int, timeout_s: float
    ) -> None:
        import torch  # noqa: PLC0415
        from torch import distributed  # noqa: PLC0415

        self._torch = torch
        self._other = 1 - rank
        self._timeout_s = timeout_s
        self._stream: Any = None
        if "cpu" not in distributed.Backend.backend_capability.get(backend, ()):
            self._stream = torch.cuda.Stream()
        try:
            own = distributed.PrefixStore(prefix, store)
            self._group: Any = _create(backend)(own, rank, timedelta(seconds=timeout_s))
        except RuntimeError as error:
            raise InstanceLost("the peer does not join the process group") from error

    def send(self, messages: Sequence[Parts], check: Callable[[], None]) -> None:
        """Send ``messages``; returns when their bytes may change."""
        with self._working():
            tensors = [self._leaving(parts) for parts in messages]
            self._end([self._group.send([one], self._other, 0) for one in tensors], check)

    def receive(self, messages: Sequence[Parts], check: Callable[[], None]) -> None:
        """Fill ``messages``, in the order in which the other sends them."""
        with self._working():
            tensors = [self._arriving(parts) for parts in messages]
            self._end([self._group.recv([one], self._other, 0) for one in tensors], check)
            for parts, tensor in zip(messages, tensors, strict=True):
                self._spread(parts, tensor)
            if self._stream is not None:
                self._stream.synchronize()

    def close(self) -> None:
        """Leave the group. Idempotent."""
        group, self._group = self._group, None
        if group is not None:
            with contextlib.suppress(RuntimeError, AttributeError):
                group.abort()

    # -- inside

    @contextlib.contextmanager
    def _working(self) -> Iterator[None]:
        if self._group is None:
            raise InstanceLost("the process group was left")
        side = contextlib.nullcontext() if self._stream is None else self._cuda_stream()
        try:
            with side:
                yield
        except RuntimeError as error:
            raise InstanceLost("the peer is gone or silent, says its process group") from error

    def _cuda_stream(self) -> Any:
        return self._torch.cuda.stream(self._stream)

    def _end(self, works: Sequence[Any], check: Callable[[], None]) -> None:
        """Wait until all of ``works`` are done."""
        if self._stream is None:
            for work in works:
                work.wait(timedelta(seconds=self._timeout_s))
            return
        until_s = time.monotonic() + self._timeout_s
        while not all(work.is_completed() for work in works):
            check()
            if time.monotonic() >= until_s:
                raise InstanceLost("the peer is silent")
            time.sleep(PAUSE_S)

    def _flat(self, part: memoryview) -> Any:
        return self._torch.frombuffer(part, dtype=self._torch.uint8)

    def _leaving(self, parts: Parts) -> Any:
        flat = [self._flat(part) for part in parts]
        whole = flat[0] if len(flat) == 1 else self._torch.cat(flat)
        return whole if self._stream is None else whole.to("cuda", non_blocking=True)

    def _arriving(self, parts: Parts) -> Any:
        if self._stream is None and len(parts) == 1:
            return self._flat(parts[0])
        device = "cpu" if self._stream is None else "cuda"
        length = sum(len(part) for part in parts)
        return self._torch.empty(length, dtype=self._torch.uint8, device=device)

    def _spread(self, parts: Parts, tensor: Any) -> None:
        if self._stream is None and len(parts) == 1:
            return
        for part, piece in zip(parts, tensor.split([len(part) for part in parts]), strict=True):
            self._flat(part).copy_(piece, non_blocking=True)


def _create(backend: str) -> Callable[[Any, int, timedelta], Any]:
    """How a group of ``backend`` is made from a store, a rank and a time-out."""
    from torch import distributed  # noqa: PLC0415

    def nccl(store: Any, rank: int, timeout: timedelta) -> Any:  # noqa: ARG001
        # Otherwise the watchdog ends this process when the other one dies.
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
        options = distributed.ProcessGroupNCCL.Options()
        options._timeout = NEVER
        return distributed.ProcessGroupNCCL(store, rank, 2, options)

    def gloo(store: Any, rank: int, timeout: timedelta) -> Any:
        return distributed.ProcessGroupGloo(store, rank, 2, timeout)

    def registered(store: Any, rank: int, timeout: timedelta) -> Any:
        plugin = distributed.Backend._plugins[backend.upper()]
        if not plugin.extended_api:
            return plugin.creator_fn(store, rank, 2, timeout)
        options = distributed.distributed_c10d._DistributedBackendOptions()
        options.store, options.group_rank, options.group_size = store, rank, 2
        options.timeout = timeout
        return plugin.creator_fn(options, None)

    if backend not in (NCCL, "gloo") and backend.upper() not in distributed.Backend._plugins:
        raise TransferError(f"transfer.nccl_backend={backend}: torch.distributed has none such")
    return {NCCL: nccl, "gloo": gloo}.get(backend, registered)
