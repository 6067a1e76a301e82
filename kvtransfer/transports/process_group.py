"""A process group of two, made and used through torch.distributed: rank 0 sends, rank 1 receives.

There is no world and no default group: instances come and go. Any backend of torch.distributed
that can send and receive will do; NCCL's rules are kept (no tags, the same messages on both sides
in the same order, from one thread). On a GPU, messages pass through device memory on a side stream:
that part was written for NCCL and has not been run. Knows messages; no blocks, leases or sockets.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from kvtransfer.transports.rendezvous import Exchange
from triptych.core.errors import InstanceLost, TransferError

NCCL = "nccl"
GIVER, TAKER = 0, 1
"""Their ranks."""
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
        torch, distributed = _torch()
    except ImportError:
        return False
    if not distributed.is_available():
        return False
    if backend == NCCL:
        return bool(torch.cuda.is_available() and distributed.is_nccl_available())
    return backend == "gloo" or backend.upper() in distributed.Backend._plugins


class Pair:
    """This process and one other. ``check`` is called while it waits for a device and may raise.

    Raises InstanceLost if the other is gone or silent for ``timeout_s``; the group is of no use
    then. Once it is closed, nothing is written into memory that was to be received into.
    """

    def __init__(self, backend: str, exchange: Exchange, rank: int, timeout_s: float) -> None:
        torch, distributed = _torch()
        self._torch = torch
        self._other = 1 - rank
        self._timeout_s = timeout_s
        self._exchange = exchange
        self._stream: Any = None
        try:
            if "cpu" not in distributed.Backend.backend_capability.get(backend, ()):
                self._stream = torch.cuda.Stream()
            store = _store(exchange)
            self._group: Any = _create(backend)(store, rank, timedelta(seconds=timeout_s))
        except (RuntimeError, InstanceLost) as error:
            exchange.close()
            raise InstanceLost("the peer does not join the process group") from error
        except TransferError:  # the backend is not here
            exchange.close()
            raise

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
        self._exchange.close()

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


def _torch() -> tuple[Any, Any]:
    """torch and torch.distributed. Takes seconds, and many processes never need it."""
    import torch
    from torch import distributed

    return torch, distributed


def _store(exchange: Exchange) -> Any:
    """An exchange as torch.distributed wants it."""
    _, distributed = _torch()

    class PairStore(distributed.Store):  # type: ignore[misc,name-defined]
        def set(self, key: str, value: bytes | str) -> None:
            exchange.set(key, value.encode() if isinstance(value, str) else bytes(value))

        def get(self, key: str) -> bytes:
            return exchange.get(key)

        def check(self, keys: Sequence[str]) -> bool:
            return all(exchange.has(key) for key in keys)

        def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:  # noqa: ARG002
            for key in keys:
                exchange.get(key)

    return PairStore()


def _create(backend: str) -> Callable[[Any, int, timedelta], Any]:
    """How a group of ``backend`` is made from a store, a rank and a time-out."""
    _, distributed = _torch()

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
