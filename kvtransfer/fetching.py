"""What services ask of the taking side, whatever carries the bytes. A protocol only."""

from collections.abc import Callable, Sequence
from typing import Protocol

from triptych.core.catalog import LinkReport
from triptych.core.census import Holding
from triptych.core.handoff import TransferRef
from triptych.core.ports import BlockMemory


class Fetching(Protocol):
    """Fetches of one instance: ``kvtransfer.receiver``, or a modelled link."""

    async def fetch(
        self,
        ref: TransferRef,
        memory: BlockMemory,
        blocks: Sequence[int],
        first_block: int,
        on_arrived: Callable[[int], None] | None,
        deadline_s: float,
    ) -> bytes:
        """Fill ``blocks`` of ``memory`` with a promise from its block ``first_block`` on (counted
        in blocks of ``memory``); its tail.

        Waits until the promise is offered and complete. ``on_arrived(n)`` is called on the event
        loop when the first ``n`` of ``blocks`` are filled and verified; they count only when this
        has returned. With no ``blocks`` only the tail is fetched. ``deadline_s`` is a point of the
        clock. Raises TransferError, InstanceLost, DeadlineExceeded, Cancelled or what the producer
        failed with. The blocks may be reused at once then.
        """
        ...

    def census(self) -> list[Holding]:
        """Fetches in flight by the instance that gives."""
        ...

    def links(self) -> list[LinkReport]:
        """How the ways to other instances are, by the transfers that were made."""
        ...

    async def close(self) -> None:
        """End all fetches with Cancelled. Idempotent."""
        ...
