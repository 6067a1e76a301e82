"""Tensor parallelism: which share of a layer a rank has, and how the ranks' summands add up.

A layer is split as in Megatron-LM (arXiv 1909.08053, section 3): attention by heads, the MLP by
inner columns, so that every rank returns one summand of the layer's output. ``Ranks`` computes all
of them one after the other: a test bed for moving KV between instances of different degree, not a
speed-up. ``ProcessRanks`` is one rank among processes. Knows no layers, and starts no process.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed
from torch.nn import functional

from triptych.core.plan import LanguagePlan

_C10D: Any = distributed
"""Its classes are only half typed."""
_HOST = "127.0.0.1"
"""Ranks share memory, so they are on one host, and nobody beyond it can reach them."""
_SMALL_BYTES = 65_536


class Share(NamedTuple):
    """One of ``num_ranks`` equal parts of whatever is split."""

    rank: int = 0
    num_ranks: int = 1

    def of(self, size: int) -> slice:
        """The part of ``[0, size)``; ``num_ranks`` divides ``size``."""
        part = size // self.num_ranks
        return slice(self.rank * part, (self.rank + 1) * part)


WHOLE = Share()


class Ranks:
    """All ranks, computed here."""

    def __init__(self, num_ranks: int) -> None:
        self.shares: tuple[Share, ...] = tuple(Share(rank, num_ranks) for rank in range(num_ranks))
        """Of the ranks that this process computes."""

    def total(self, summands: Sequence[Tensor]) -> Tensor:
        """The sum over all ranks of what each of ``shares`` made, added in the order of ranks:
        every run gives the same bits."""
        return _in_order(summands)

    def step(self, plan: LanguagePlan, x: Tensor) -> AbstractContextManager[None]:  # noqa: ARG002
        """Around the layers of a step whose rows are ``x``: nobody else has to hear of it."""
        return nullcontext()


class ProcessRanks:
    """One rank of ``share.num_ranks``, each in a process of its own, joined through gloo.

    Who waits for another rank sleeps. Every method but ``leave`` is called by all ranks in the same
    order; each raises RuntimeError if a rank is gone, or silent for the time given to ``join``.
    """

    def __init__(self, share: Share) -> None:
        self.shares: tuple[Share, ...] = (share,)
        """Of the rank that this process computes."""
        self._share = share
        self._group: Any = None

    def join(self, meeting: int, *, start_s: float, timeout_s: float) -> None:
        """Wait up to ``start_s`` for all ranks. ``meeting`` is a descriptor of a memfd that they
        have in common; it stays open until ``leave``. ``timeout_s`` bounds every later wait."""
        # Without a number of workers the store does nothing at its end, when whose file the
        # descriptor is could be another matter.
        store = _C10D.FileStore(f"/proc/self/fd/{meeting}")
        store.set_timeout(timedelta(seconds=start_s))
        options = _C10D.ProcessGroupGloo._Options()
        options._devices = [_C10D.ProcessGroupGloo.create_device(hostname=_HOST)]
        options._timeout = timedelta(seconds=start_s)
        options._threads = 1
        rank, num_ranks = self._share
        group = _C10D.ProcessGroupGloo(store, rank, num_ranks, options)
        group.barrier().wait()
        group._set_default_timeout(timedelta(seconds=timeout_s))
        self._group = group

    def leave(self) -> None:
        """Part from the others. Idempotent."""
        self._group = None

    def spread(self, x: Tensor) -> None:
        """Fill ``x``, of equal shape everywhere, with what it is at rank 0."""
        self._joined.broadcast(x, 0).wait()

    def total(self, summands: Sequence[Tensor]) -> Tensor:
        """The sum over all ranks, whose summand here is the only one of ``summands`` and may be
        overwritten: the bits of ``Ranks.total``.

        Of two numbers the order does not matter. More are added in the order of ranks, which
        gloo's own sum does not: every rank adds up its part of the tensor, then all is gathered;
        of a small tensor every rank adds up all, which is one meeting less.
        """
        (own,), group, num_ranks = summands, self._joined, self._share.num_ranks
        if num_ranks <= 2:
            group.allreduce([own]).wait()
            return own
        if own.nbytes <= _SMALL_BYTES:
            found = own.new_empty((num_ranks, *own.shape))
            group.allgather([list(_bytes(found).unbind())], [_bytes(own)]).wait()
            return _in_order(found.unbind())
        flat = own.flatten()
        padded = functional.pad(flat, (0, -len(flat) % num_ranks)).view(num_ranks, -1)
        found = torch.empty_like(padded)
        group.alltoall_base(_bytes(found), _bytes(padded), [], []).wait()
        part = _in_order(found.unbind())
        group.allgather([list(_bytes(padded).unbind())], [_bytes(part)]).wait()
        return padded.flatten()[: len(flat)].view_as(own)

    @property
    def _joined(self) -> Any:
        if self._group is None:
            raise RuntimeError("this rank has left the others")
        return self._group


def _in_order(summands: Sequence[Tensor]) -> Tensor:
    result = summands[0]
    for summand in summands[1:]:
        result = result + summand
    return result


def _bytes(tensor: Tensor) -> Tensor:
    """What is moved, not counted: gloo need not know every dtype."""
    return tensor.view(torch.uint8)
