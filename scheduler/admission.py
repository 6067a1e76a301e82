"""How many requests are accepted at once, over all and for each tenant.

Knows counts only. A ticket is taken before any decoding or tokenising and given back on every exit.
"""

from collections import Counter

from triptych.core.errors import InvariantBroken, Overloaded
from triptych.core.ids import TenantId


class Ticket:
    """The right to one accepted request. Made by ``Admission.take``."""

    __slots__ = ("tenant",)

    def __init__(self, tenant: TenantId) -> None:
        self.tenant = tenant


class Admission:
    """Bounded tickets: no queue, no clock. Who gets none is told when to come back."""

    def __init__(
        self, max_requests: int, max_requests_per_tenant: int, *, retry_after_s: float = 1.0
    ) -> None:
        self._max_requests = max_requests
        self._max_per_tenant = max_requests_per_tenant
        self._retry_after_s = retry_after_s
        self._taken: set[Ticket] = set()
        self._by_tenant: Counter[TenantId] = Counter()

    @property
    def num_taken(self) -> int:
        """Tickets out."""
        return len(self._taken)

    def num_of(self, tenant: TenantId) -> int:
        """Tickets that ``tenant`` has out."""
        return self._by_tenant[tenant]

    def take(self, tenant: TenantId) -> Ticket:
        """A ticket, or Overloaded, which leaves nothing behind."""
        if len(self._taken) >= self._max_requests:
            raise Overloaded("all requests", retry_after_s=self._retry_after_s)
        if self._by_tenant[tenant] >= self._max_per_tenant:
            raise Overloaded("requests of one tenant", retry_after_s=self._retry_after_s)
        ticket = Ticket(tenant)
        self._taken.add(ticket)
        self._by_tenant[tenant] += 1
        return ticket

    def release(self, ticket: Ticket) -> None:
        """Give a ticket back; a second time does nothing."""
        if ticket not in self._taken:
            return
        self._taken.remove(ticket)
        self._by_tenant[ticket.tenant] -= 1
        if not self._by_tenant[ticket.tenant]:
            del self._by_tenant[ticket.tenant]

    def check(self) -> None:
        """Raise InvariantBroken unless the counts are those of the tickets."""
        if Counter(ticket.tenant for ticket in self._taken) != self._by_tenant:
            raise InvariantBroken("admission: counts and tickets disagree")
