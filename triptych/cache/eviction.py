"""What is given up first when a cache needs room: orders, what a loss costs, and the queue.

Knows how often and how lately an entry was used, and what it would cost to have it again. Does not
know what entries are or who may not be evicted: that is said by ``put`` and ``discard``.
"""

import heapq
from collections.abc import Callable, Iterator
from itertools import count
from typing import Generic, TypeVar

import msgspec

from triptych.core.errors import InvariantBroken


class Evictable:
    """Base of a cache's entries: how it was used, and what its loss would cost."""

    __slots__ = ("cost", "num_uses", "place")

    def __init__(self, cost: float = 1.0) -> None:
        self.cost = cost
        """Work to have it again over its bytes; only ratios within one cache count."""
        self.num_uses = 0
        self.place = (0.0, 0)
        """Rank, and a tick of the last use, which no two entries share."""


Order = Callable[[Evictable, float], float]
"""Rank of an entry that is used now; the least goes first, of equal ones the one unused for
longest. The second argument is the highest rank evicted so far: an order that adds it ages, because
what is used today starts above everything that was worth less yesterday. Pure."""


def lru(_entry: Evictable, _floor: float) -> float:
    """Unused for longest first."""
    return 0.0


def lfu(entry: Evictable, floor: float) -> float:
    """Least often used first, with dynamic ageing: LFU-DA (Arlitt et al., Evaluating Content
    Management Techniques for Web Proxy Caches, HPL-98-173, section 4)."""
    return floor + entry.num_uses


def greedy_dual(entry: Evictable, floor: float) -> float:
    """Least uses times cost per byte first: GreedyDual-Size (Cao and Irani, USITS 1997, section 4)
    with frequency (Cherkasova, HPL-98-69R1)."""
    return floor + entry.num_uses * entry.cost


ORDERS: dict[str, Order] = {"lru": lru, "lfu": lfu, "cost": greedy_dual}
"""Values of ``cache.eviction``."""


class Recompute(msgspec.Struct, frozen=True):
    """What it takes to compute lost entries again. Unit: one token through the dense layers of the
    language model. The defaults follow from the sizes of Qwen2.5-VL-7B (arXiv 2502.13923, table 1);
    an order needs them roughly right only."""

    horizon_tokens: float = 32_768.0
    """Tokens before a token at which attention to them costs as much as all dense layers."""
    encode_tokens: float = 0.4
    """Encoding one visual token: four patches through 0.67 of 6.5 billion weights."""
    encode_horizon_tokens: float = 15_360.0
    """Visual tokens of a picture at which the encoder's full attention (4 of 32 layers) costs as
    much as the rest of it."""

    def of_range(self, start: int, end: int) -> float:
        """KV of tokens ``[start, end)`` of a sequence whose earlier ones are there."""
        return (end - start) * (1 + (start + end) / 2 / self.horizon_tokens)

    def of_block(self, start: int, end: int, num_encoded: int = 0) -> float:
        """The same per token of the block that they fill. ``num_encoded``: visual tokens of all
        items that would have to be encoded again with it."""
        return (self.of_range(start, end) + num_encoded * self.encode_tokens) / (end - start)

    def of_embedding(self, num_tokens: int, capacity: int) -> float:
        """A picture of ``num_tokens`` visual tokens, per token of the blocks' ``capacity``."""
        return num_tokens * (1 + num_tokens / self.encode_horizon_tokens) / capacity


T = TypeVar("T", bound=Evictable)


class EvictionQueue(Generic[T]):
    """The entries of a cache that may be evicted now. ``put``, ``discard`` and ``pop`` are
    O(log n), amortised."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._floor = 0.0
        self._ticks = count(1)
        self._heap: list[tuple[float, int, int, T]] = []
        self._serials: dict[T, int] = {}
        """Of each entry that is in the queue, the serial of its one valid item in the heap."""

    def __len__(self) -> int:
        return len(self._serials)

    def __contains__(self, entry: T) -> bool:
        return entry in self._serials

    def __iter__(self) -> Iterator[T]:
        return iter(self._serials)

    def use(self, entry: T) -> None:
        """``entry``, which is not in the queue, is used now."""
        if entry in self._serials:
            raise InvariantBroken("eviction: what is used could be evicted")
        entry.num_uses += 1
        entry.place = (self._order(entry, self._floor), next(self._ticks))

    def put(self, entry: T) -> None:
        """``entry`` may be evicted from now on."""
        serial = self._serials[entry] = next(self._ticks)
        heapq.heappush(self._heap, (*entry.place, serial, entry))

    def discard(self, entry: T) -> None:
        """``entry`` may not be evicted, or is gone."""
        if self._serials.pop(entry, None) is not None:
            self._compact()

    def pop(self) -> T | None:
        """Take out the entry to evict; None if there is none."""
        while self._heap:
            rank, _, serial, entry = heapq.heappop(self._heap)
            if self._serials.get(entry) == serial:
                del self._serials[entry]
                self._floor = max(self._floor, rank)
                return entry
        return None

    def check(self) -> None:
        """Raise InvariantBroken unless each entry is in the heap once, where its use put it."""
        valid = [item for item in self._heap if self._serials.get(item[3]) == item[2]]
        if len(valid) != len(self._serials):
            raise InvariantBroken("eviction: an entry would never be evicted")
        if any(entry.place != (rank, tick) for rank, tick, _, entry in valid):
            raise InvariantBroken("eviction: an entry was used while it could be evicted")
        if len(self._heap) > 2 * len(self._serials) + 65:
            raise InvariantBroken("eviction: the queue grows without bound")

    def _compact(self) -> None:
        """Items of what was discarded stay in the heap until popped; bound how many."""
        if len(self._heap) > 2 * len(self._serials) + 64:
            self._heap = [item for item in self._heap if self._serials.get(item[3]) == item[2]]
            heapq.heapify(self._heap)
