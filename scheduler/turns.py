"""Whose turn it is: the tenant that was served least goes first.

The virtual token counter (Sheng et al., OSDI 2024, algorithm 2), with what an answer is expected
to cost charged at once and set right at its end. A tenant that comes back is lifted to those that
wait, so that it cannot save up; a tenant's own requests go by priority, then bounded ones first,
then by arrival.
Knows tokens and weights; no clock.
"""

from collections.abc import Mapping
from heapq import heappop, heappush
from typing import Generic, TypeVar

from triptych.core.ids import TenantId

INPUT_WEIGHT, OUTPUT_WEIGHT = 1.0, 2.0
"""Of a token of a prompt, and of one that is drawn (section 3.1 of the paper)."""

ItemT = TypeVar("ItemT")


class _Tenant(Generic[ItemT]):
    """One tenant's counter and what waits of it."""

    __slots__ = ("counter", "queue", "waiting_charge", "waiting_s", "weight")

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.counter = 0.0
        self.queue: list[tuple[tuple[int, bool, int], ItemT, float, float]] = []
        self.waiting_charge = self.waiting_s = 0.0


class Turns(Generic[ItemT]):
    """Requests that wait, by tenant.

    While two tenants wait, what they were charged, each over its weight, differs by at most the
    largest single charge over its weight, corrections aside; so between two turns of one tenant
    another gets no more than that, and nobody waits for ever.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._weights = weights
        self._tenants: dict[TenantId, _Tenant[ItemT]] = {}
        self._waiting: set[TenantId] = set()
        self._last = 0.0
        """The counter of the tenant that was served last."""
        self._number = 0

    def __len__(self) -> int:
        return sum(len(self._tenants[name].queue) for name in self._waiting)

    def push(
        self,
        tenant: TenantId,
        item: ItemT,
        price: tuple[float, float],
        urgency: tuple[int, bool],
    ) -> None:
        """``item`` waits. ``price``: its weighted tokens (> 0), and the seconds that it will take
        of the instances; ``urgency``: its priority, and whether it has a bound to keep."""
        charge, seconds = price
        one = self._tenant(tenant)
        if tenant not in self._waiting:
            one.counter = max(one.counter, self._floor())
            self._waiting.add(tenant)
        self._number += 1
        priority, is_bounded = urgency
        heappush(one.queue, ((-priority, not is_bounded, self._number), item, charge, seconds))
        one.waiting_charge += charge
        one.waiting_s += seconds

    def peek(self) -> ItemT | None:
        """Whose turn it is; None if nobody waits."""
        return self._tenants[self._first()].queue[0][1] if self._waiting else None

    def pop(self) -> tuple[TenantId, ItemT]:
        """What ``peek`` gave gets its turn, and its tenant is charged."""
        name = self._first()
        one = self._tenants[name]
        _, item, charge, seconds = heappop(one.queue)
        self._left(name, charge, seconds)
        one.counter += charge / one.weight
        self._last = one.counter
        return name, item

    def remove(self, tenant: TenantId, item: ItemT) -> bool:
        """``item`` does not wait any more and is not charged; whether it waited."""
        one = self._tenants.get(tenant)
        for place, entry in enumerate(one.queue if one else ()):
            if entry[1] is item:
                assert one is not None, "there is a queue"
                one.queue[place] = one.queue[-1]
                one.queue.pop()
                one.queue.sort()  # sorted is a heap; the numbers tell equal ones apart
                self._left(tenant, entry[2], entry[3])
                return True
        return False

    def settle(self, tenant: TenantId, charge: float) -> None:
        """What a request of ``tenant`` was charged was wrong by ``charge``, which may be < 0."""
        one = self._tenant(tenant)
        one.counter = max(0.0, one.counter + charge / one.weight)

    def ahead_s(self, tenant: TenantId, charge: float) -> float:
        """Seconds of work that would go before a new request of ``tenant``, if nobody else came:
        all that waits of its own, and of others what their counters are behind its by then."""
        one = self._tenants.get(tenant)
        weight = self._weight(tenant) if one is None else one.weight
        counter = 0.0 if one is None else one.counter
        if tenant not in self._waiting:
            counter = max(counter, self._floor())
        own_charge, own_s = (0.0, 0.0) if one is None else (one.waiting_charge, one.waiting_s)
        end, ahead_s = counter + (own_charge + charge) / weight, own_s
        for name in self._waiting:
            other = self._tenants[name]
            if name != tenant and other.waiting_charge > 0:
                behind = max(0.0, end - other.counter) * other.weight
                ahead_s += other.waiting_s * min(1.0, behind / other.waiting_charge)
        return ahead_s

    @property
    def waiting_s(self) -> float:
        """Seconds of work that wait, of all tenants."""
        return sum(self._tenants[name].waiting_s for name in self._waiting)

    def longest(self) -> TenantId | None:
        """The tenant of which most waits, for its weight; None if nobody does."""
        return max(
            self._waiting,
            key=lambda name: (self.waiting_of(name), name),
            default=None,
        )

    def waiting_of(self, tenant: TenantId) -> float:
        """What waits of a tenant, in weighted tokens over its weight."""
        one = self._tenants.get(tenant)
        return 0.0 if one is None else one.waiting_charge / one.weight

    def last_of(self, tenant: TenantId) -> ItemT:
        """The tenant's request whose turn would come last. It waits."""
        return max(self._tenants[tenant].queue)[1]

    def counter(self, tenant: TenantId) -> float:
        """What a tenant was charged, over its weight, lifts included."""
        return self._tenant(tenant).counter

    def _first(self) -> TenantId:
        return min(self._waiting, key=lambda name: (self._tenants[name].counter, name))

    def _floor(self) -> float:
        """To where a tenant is lifted that begins to wait."""
        if not self._waiting:
            return self._last
        return min(self._tenants[name].counter for name in self._waiting)

    def _left(self, name: TenantId, charge: float, seconds: float) -> None:
        one = self._tenants[name]
        one.waiting_charge -= charge
        one.waiting_s -= seconds
        if not one.queue:
            one.waiting_charge = one.waiting_s = 0.0
            self._waiting.discard(name)

    def _tenant(self, name: TenantId) -> _Tenant[ItemT]:
        if name not in self._tenants:
            self._tenants[name] = _Tenant(self._weight(name))
        return self._tenants[name]

    def _weight(self, name: TenantId) -> float:
        return self._weights.get(name, 1.0)
