"""What one instance promises to others, whoever comes for it and however.

The services' side of an outbox: offers under leases. Knows no socket and no thread; engine state is
touched only through ``call_soon``.
"""

import asyncio
from collections.abc import Callable, Collection
from typing import Any

from kvtransfer.lease import Lease, Release, Verdict
from kvtransfer.offer import Offer, Offers
from triptych.core.census import Holding
from triptych.core.clock import Clock
from triptych.core.config import TransferConfig
from triptych.core.handoff import Endpoint
from triptych.core.ids import Handle, InstanceId
from triptych.core.ports import BlockMemory


class Promises:
    """What one instance offers to others. Methods may be called on any thread."""

    def __init__(
        self,
        instance: InstanceId,
        config: TransferConfig,
        clock: Clock,
        call_soon: Callable[..., Any],
    ) -> None:
        self.instance = instance
        self.config = config
        self.clock = clock
        self.offers = Offers(config.lease_s, clock, call_soon)

    def start(self) -> Endpoint:
        """Be ready for takers; where they find us."""
        raise NotImplementedError

    def offer(
        self,
        handle: Handle,
        epoch: int,
        memory: BlockMemory,
        owner: str,
        on_release: Callable[[str], None],
    ) -> Offer:
        """Promise blocks of ``memory`` under ``handle``; the offer is empty at first.

        ``on_release`` is called through ``call_soon`` exactly once, with a value of ``Release``,
        when the appended blocks may be reused. A handle that was refused or withdrawn before it
        was offered gives an offer that is released at once.
        """
        offer = Offer(Lease(handle, epoch, owner), memory, on_release, self.offers.change)
        self.offers.add(offer)
        return offer

    async def withdraw(self, handle: Handle, detail: str = "the producer was cancelled") -> None:
        """Take an offer back and return when its memory is free and its owner told. A taker gets
        Cancelled. Idempotent; an unknown handle is refused from now on."""
        verdict = Verdict(Release.WITHDRAWN, "cancelled", detail)
        offer = self.offers.refuse(handle, verdict)
        if offer is None:
            await asyncio.sleep(0)  # if it is over, its owner's turn to hear of it comes first
        else:
            await asyncio.shield(asyncio.wrap_future(offer.settled))

    def refuse(self, handle: Handle, code: str, detail: str) -> None:
        """Answer fetches of ``handle`` with an error, at once: its job failed before it could
        offer anything, or while it did."""
        self.offers.refuse(handle, Verdict(Release.FAILED, code, detail))

    def relieve(self, memory: BlockMemory, handles: Collection[Handle]) -> set[Handle]:
        """See ``Offers.relieve``."""
        return self.offers.relieve(memory, handles)

    def revoke(self, handles: Collection[Handle]) -> None:
        """See ``Offers.revoke``; those under ``handles`` are meant."""
        self.offers.revoke(lambda offer: offer.lease.id in handles)

    def census(self) -> list[Holding]:
        """Leases by owner."""
        owners = self.offers.owners()
        return [Holding("lease", owner, owners.count(owner)) for owner in sorted(set(owners))]

    async def close(self) -> None:
        """Withdraw everything. Idempotent."""
        self.offers.stop()
