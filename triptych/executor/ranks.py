"""Tensor parallelism inside one process: which share of a layer a rank has, and how shares add up.

A layer is split as in Megatron-LM (arXiv 1909.08053, section 3): attention by heads, the MLP by
inner columns, so that every rank returns one summand of the layer's output. Knows nothing of
layers. The ranks run one after the other on one device: a test bed for moving KV between
instances of different degree, not a speed-up. Ranks on several devices or in several processes
would be another class like ``Ranks``.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


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
        self.shares = tuple(Share(rank, num_ranks) for rank in range(num_ranks))
        """Of the ranks that this process computes."""

    def total(self, summands: Sequence[Tensor]) -> Tensor:
        """The sum over all ranks of what each of ``shares`` made, added in the order of ranks:
        every run gives the same bits."""
        result = summands[0]
        for summand in summands[1:]:
            result = result + summand
        return result
