"""Tensor parallelism: which share of a layer a rank has, and how the ranks' summands add up.

A layer is split as in Megatron-LM (arXiv 1909.08053, section 3): attention by heads, the MLP by
inner columns, so that every rank returns one summand of the layer's output. ``Ranks`` computes all
of them one after the other: a test bed for moving KV between instances of different degree, not a
speed-up. ``ProcessRanks`` is one rank among processes. Knows no layers, and starts no process.
"""

import mmap
import os
import socket
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from triptych.core.errors import InstanceLost
from triptych.core.plan import LanguagePlan

_PIECE_BYTES = 262_144
"""Of a summand; so many stay in a core's cache while they are added up."""


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

    is_alone = True
    """Whether nobody else has to hear of a step."""

    def __init__(self, num_ranks: int) -> None:
        self.shares: tuple[Share, ...] = tuple(Share(rank, num_ranks) for rank in range(num_ranks))
        """Of the ranks that this process computes."""

    def total(self, summands: Sequence[Tensor]) -> Tensor:
        """The sum over all ranks of what each of ``shares`` made, added in the order of ranks:
        every run gives the same bits."""
        result = summands[0]
        for summand in summands[1:]:
            result = result + summand
        return result

    def step(self, plan: LanguagePlan, x: Tensor) -> AbstractContextManager[None]:  # noqa: ARG002
        """Around the layers of a step whose rows are ``x``: nobody else has to hear of it."""
        return nullcontext()


class ProcessRanks:
    """One rank of several, each in a process of its own on this host.

    Summands lie on a board that all have mapped, piece by piece, and who has written tells every
    other rank by one byte over a socket: whoever waits sleeps. ``spread`` and ``total`` are called
    by all ranks in the same order; they raise InstanceLost if a rank is gone, or silent for
    ``timeout_s``. ``board`` is a descriptor that ``make_board`` made, ``peers`` lead to the others.
    """

    def __init__(
        self, share: Share, board: int, peers: Sequence[socket.socket], timeout_s: float
    ) -> None:
        self.shares: tuple[Share, ...] = (share,)
        """Of the rank that this process computes."""
        self._rank = share.rank
        self._peers = tuple(peers)
        for peer in peers:
            peer.settimeout(timeout_s)
        memory = mmap.mmap(board, _board_bytes(share.num_ranks), flags=mmap.MAP_SHARED)
        flat = torch.frombuffer(memory, dtype=torch.uint8)
        # Two sides: who is a meeting ahead writes on one while the other is still being read, and
        # nobody can be two ahead.
        self._board = flat.view(2, share.num_ranks, _PIECE_BYTES)
        self._side = 0

    def meet(self) -> None:
        """Nothing to wait for: whoever comes first to the board waits there."""

    def close(self) -> None:
        """Part from the others. Idempotent."""
        for peer in self._peers:
            peer.close()

    def spread(self, x: Tensor) -> None:
        """Fill ``x``, contiguous and of equal shape everywhere, with what it is at rank 0."""
        for piece in _pieces(x):
            said = self._board[self._side, 0, : piece.nbytes].view(x.dtype)
            if self._rank == 0:
                said.copy_(piece)
            self._meet()
            if self._rank != 0:
                piece.copy_(said)

    def total(self, summands: Sequence[Tensor]) -> Tensor:
        """The sum over all ranks, whose summand here is the only one of ``summands``; it is
        contiguous, and is overwritten. The bits are those of ``Ranks.total``."""
        (own,) = summands
        for piece in _pieces(own):
            found = self._board[self._side, :, : piece.nbytes].view(own.dtype).unbind()
            found[self._rank].copy_(piece)
            self._meet()
            torch.add(found[0], found[1], out=piece)
            for summand in found[2:]:
                piece.add_(summand)
        return own

    def _meet(self) -> None:
        """Go on when every rank is here."""
        self._side = 1 - self._side
        try:
            for peer in self._peers:
                peer.send(b".")
            if all(peer.recv(1) for peer in self._peers):
                return
        except OSError as error:
            raise InstanceLost(f"a rank is gone or silent: {error}") from error
        raise InstanceLost("a rank is gone")


def make_board(num_ranks: int) -> int:
    """A memfd that ``num_ranks`` ranks may meet at."""
    board = os.memfd_create("triptych-board", os.MFD_CLOEXEC)
    os.truncate(board, _board_bytes(num_ranks))
    return board


def _board_bytes(num_ranks: int) -> int:
    return 2 * num_ranks * _PIECE_BYTES


def _pieces(tensor: Tensor) -> list[Tensor]:
    flat, size = tensor.view(-1), _PIECE_BYTES // tensor.element_size()
    return [flat[start : start + size] for start in range(0, len(flat), size)]
