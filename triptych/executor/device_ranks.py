"""One rank of several, each in a process with memory of its own: sums are torch.distributed's.

NCCL between GPUs, gloo between CPUs, where it is a test bed: ranks that share a host's memory meet
at a board (``ranks.ProcessRanks``). All are on one host. Knows groups and tensors; no layers.
"""

import contextlib
import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed
from torch import Tensor

from triptych.core.errors import InstanceLost
from triptych.executor.orders import Orders
from triptych.executor.ranks import Share

distributed: Any = torch.distributed
"""Groups without a world have no types there."""
NCCL, GLOO = "nccl", "gloo"
_NEVER = timedelta(days=1)
"""NCCL's watchdog ends the whole process after its time-out; here the loss of a rank is seen by the
end of its process."""


class Meeting(NamedTuple):
    """How ranks find each other."""

    backend: str
    device: str
    """Of the rank that has this."""
    path: str
    """A file that only they know, and that is not there before."""
    start_s: float
    """How long to wait for the others at first, ..."""
    timeout_s: float
    """... and in a step; of gloo alone."""


class DeviceRanks:
    """Implements ``models.decoder.Sharers``. ``meet`` is called by all ranks at once, then
    ``spread`` and ``total`` by all in the same order. Of NCCL both are queued in the current
    stream. They raise InstanceLost if gloo says that a rank is gone or silent."""

    def __init__(self, share: Share, meeting: Meeting) -> None:
        self.shares: tuple[Share, ...] = (share,)
        """Of the rank that this process computes."""
        self._meeting = meeting
        self._timeout = timedelta(seconds=meeting.timeout_s)
        self._group: Any = None

    def meet(self) -> None:
        """Wait for the others. Raises InstanceLost if not all come in time."""
        (share,), wait = self.shares, timedelta(seconds=self._meeting.start_s)
        with _failing("ranks cannot meet"):
            store = distributed.FileStore(self._meeting.path, share.num_ranks)
            store.set_timeout(wait)
            make: Callable[..., Any] = _nccl if self._meeting.backend == NCCL else _gloo
            self._group = make(store, share, wait)
            # NCCL makes its connections at the first sum: now, and not within a client's step.
            self.total([torch.zeros(1, device=self._meeting.device)])
            if self._meeting.backend == NCCL:
                torch.cuda.synchronize(self._meeting.device)

    def spread(self, x: Tensor) -> None:
        """Fill ``x``, contiguous and of equal shape everywhere, with what it is at rank 0."""
        options = distributed.BroadcastOptions()
        options.rootRank, options.timeout = 0, self._timeout
        with _failing("a rank is gone or silent"):
            self._group.broadcast([x], options).wait()

    def total(self, summands: Sequence[Tensor]) -> Tensor:
        """The sum over all ranks, whose summand here is the only one of ``summands``; it is
        overwritten. The order of the sum is the backend's, the same in every run."""
        (own,) = summands
        options = distributed.AllreduceOptions()
        options.timeout = self._timeout
        with _failing("a rank is gone or silent"):
            self._group.allreduce([own], options).wait()
        return own

    def close(self) -> None:
        """Part from the others. Idempotent."""
        group, self._group = self._group, None
        if group is not None:
            with contextlib.suppress(RuntimeError, AttributeError):
                group.abort()


def meeting_of(orders: Orders) -> Meeting:
    """Where and how the ranks of ``orders`` meet."""
    where = orders.backend, orders.device, orders.meeting
    return Meeting(*where, orders.start_s, orders.timeout_s)


def default_backend(device: torch.device) -> str:
    """What joins ranks on such devices."""
    return NCCL if device.type == "cuda" else GLOO


def device_of(device: str, rank: int) -> str:
    """Where ``rank`` computes if rank 0 does on ``device``: of GPUs, so many further on."""
    at = torch.device(device)
    return device if at.type == "cpu" else f"{at.type}:{(at.index or 0) + rank}"


def _nccl(store: Any, share: Share, wait: timedelta) -> Any:  # noqa: ARG001
    # Otherwise the watchdog ends this process when another one dies.
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
    options = distributed.ProcessGroupNCCL.Options()
    options._timeout = _NEVER
    return distributed.ProcessGroupNCCL(store, share.rank, share.num_ranks, options)


def _gloo(store: Any, share: Share, wait: timedelta) -> Any:
    options = distributed.ProcessGroupGloo._Options()
    options._devices = [distributed.ProcessGroupGloo.create_device(hostname="127.0.0.1")]
    options._timeout = wait
    return distributed.ProcessGroupGloo(store, share.rank, share.num_ranks, options)


@contextlib.contextmanager
def _failing(what: str) -> Any:
    try:
        yield
    except RuntimeError as error:
        raise InstanceLost(f"{what}: {error}") from error
