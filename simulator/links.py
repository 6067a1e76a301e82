"""Transfers in virtual time: the real offers and leases, and a modelled fabric that carries.

A message occupies the outgoing port of its giver and the incoming port of its taker for as long as
its bytes take; who comes later waits, so busy ports are shared message by message. Knows leases and
blocks; no bytes are moved.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from kvtransfer.lease import Ended, Release, Verdict
from kvtransfer.manifest import Fetch
from kvtransfer.offer import Offer
from kvtransfer.pieces import piece_bytes
from kvtransfer.promises import Promises
from simulator.costs.devices import LinkRate
from triptych.core.catalog import LinkReport
from triptych.core.census import Holding
from triptych.core.clock import Clock
from triptych.core.config import TransferConfig
from triptych.core.errors import Cancelled, DeadlineExceeded, InstanceLost, from_code
from triptych.core.handoff import Endpoint, TransferRef
from triptych.core.ids import InstanceId
from triptych.core.ports import BlockMemory


class Fabric:
    """All ways between instances. ``near`` connects those of one node, ``far`` all others; a node
    is ``per_node`` GPUs, which instances take in the order in which they start."""

    def __init__(self, near: LinkRate, far: LinkRate, per_node: int) -> None:
        self._near = near
        self._far = far
        self._per_node = per_node
        self._num_gpus = 0
        self._nodes: dict[str, int] = {}
        """Node by place of the topology: a restarted instance is where it was."""
        self._ports: dict[str, str] = {}
        """Places that have the port of another one, because they have its GPUs."""
        self._shares: dict[str, list[float]] = {}
        """What is left of the bandwidth, by port; of all far links by ``""``."""
        self._out_s: dict[str, float] = {}
        self._in_s: dict[str, float] = {}
        """When a port is free again."""
        self.promises: dict[InstanceId, Promises] = {}
        self.on_carried: Callable[[InstanceId, float, float, int], None] = _ignore
        """Hears of every message: giver, begin, end, bytes."""
        self.moved: Callable[[InstanceId, InstanceId, int], Awaitable[None]] = _moved_by_itself
        """What the processes at both ends do for the bytes of a transfer; awaited behind it."""

    def enter(self, instance: InstanceId, num_gpus: int, beside: Sequence[str] = ()) -> None:
        """An instance takes its GPUs: those of the first of the places ``beside`` that has some."""
        place = _place(instance)
        if place in self._nodes:
            return
        host = next((other for other in beside if other in self._nodes), None)
        if host is None:
            self._nodes[place] = self._num_gpus // self._per_node
            self._num_gpus += num_gpus
        else:
            self._nodes[place], self._ports[place] = self._nodes[host], self._port(host)

    def squeeze(self, place: str, share: float) -> None:
        """Only so much is left of the bandwidth of a place's port, or of all far links (``""``)."""
        self._shares.setdefault(self._port(place), []).append(share)

    def release(self, place: str, share: float) -> None:
        """One such squeeze is over."""
        self._shares[self._port(place)].remove(share)

    def link(self, giver: InstanceId, taker: InstanceId) -> LinkRate:
        """The way from one to the other, as wide as it is now."""
        one, other = _place(giver), _place(taker)
        is_near = self._nodes[one] == self._nodes[other]
        link = self._near if is_near else self._far
        if not self._shares:
            return link
        parts = [math.prod(self._shares.get(self._port(place), ())) for place in (one, other)]
        share = min(parts) * (1.0 if is_near else math.prod(self._shares.get("", ())))
        return msgspec.structs.replace(link, bytes_per_s=share * link.bytes_per_s)

    def kind(self, giver: InstanceId, taker: InstanceId) -> str:
        """``near`` or ``far``: links of one kind are alike until something happens to one."""
        return "near" if self._nodes[_place(giver)] == self._nodes[_place(taker)] else "far"

    def carry(
        self, giver: InstanceId, taker: InstanceId, num_bytes: int, now_s: float
    ) -> tuple[float, float]:
        """Send a message; when its last byte has left, and when it is there."""
        link = self.link(giver, taker)
        one, other = self._port(_place(giver)), self._port(_place(taker))
        begin_s = max(now_s, self._out_s.get(one, 0.0), self._in_s.get(other, 0.0))
        end_s = begin_s + num_bytes / link.bytes_per_s
        self._out_s[one] = self._in_s[other] = end_s
        self.on_carried(giver, begin_s, end_s, num_bytes)
        return end_s, end_s + link.latency_s

    def _port(self, place: str) -> str:
        return self._ports.get(place, place)


class SimulatedPromises(Promises):
    """Promises that takers of the same world come for."""

    def __init__(
        self,
        instance: InstanceId,
        config: TransferConfig,
        clock: Clock,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(instance, config, clock, loop.call_soon)
        self._loop = loop
        self._sweeping: asyncio.TimerHandle | None = None

    def start(self) -> Endpoint:
        """Takers find us through the fabric."""
        return Endpoint(machine="simulated")

    def offer(
        self,
        handle: str,
        epoch: int,
        memory: BlockMemory,
        owner: str,
        on_release: Callable[[str], None],
    ) -> Offer:
        """See ``Promises``. While there are offers, those that nobody comes for expire."""
        offer = super().offer(handle, epoch, memory, owner, on_release)  # type: ignore[arg-type]
        if self._sweeping is None:
            self._sweeping = self._loop.call_later(self.config.lease_s, self._sweep)
        return offer

    async def close(self) -> None:
        """See ``Promises``."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        await super().close()

    def _sweep(self) -> None:
        self.offers.sweep()
        self._sweeping = None
        if self.offers.owners():
            self._sweeping = self._loop.call_later(self.config.lease_s, self._sweep)


class SimulatedFetching:
    """The taking side of one instance. Implements ``kvtransfer.fetching.Fetching``."""

    def __init__(
        self, instance: InstanceId, config: TransferConfig, clock: Clock, fabric: Fabric
    ) -> None:
        self._instance = instance
        self._config = config
        self._clock = clock
        self._fabric = fabric
        self._givers: list[InstanceId] = []
        self._told: dict[InstanceId, LinkReport] = {}
        self._is_closed = False

    async def fetch(
        self,
        ref: TransferRef,
        memory: BlockMemory,
        blocks: Sequence[int],
        first_block: int,
        on_arrived: Callable[[int], None] | None,
        deadline_s: float,
    ) -> bytes:
        """See ``Fetching``."""
        if self._is_closed:
            raise Cancelled("the instance stops")
        size = memory.layout.block_size
        end_token = min((first_block + len(blocks)) * size, ref.num_tokens) if blocks else 0
        fetch = Fetch(
            ref.handle, ref.epoch, ref.layout, first_block * size if blocks else 0, end_token,
            "simulated",
        )  # fmt: skip
        self._givers.append(ref.instance)
        try:
            async with asyncio.timeout_at(deadline_s):
                return await self._take(ref, fetch, size, on_arrived)
        except TimeoutError:
            raise DeadlineExceeded("the bytes were not there in time") from None
        except Ended as ended:
            verdict = ended.verdict
            error = from_code(verdict.code, verdict.detail)
            error.blame = error.blame or ref.instance
            raise error from None
        except InstanceLost as error:
            error.blame = error.blame or ref.instance
            raise
        finally:
            self._givers.remove(ref.instance)

    def census(self) -> list[Holding]:
        """See ``Fetching``."""
        return [
            Holding("fetch", giver, self._givers.count(giver))
            for giver in sorted(set(self._givers))
        ]

    def links(self) -> list[LinkReport]:
        """See ``Fetching``: what a transfer by itself would find."""
        return list(self._told.values())

    async def close(self) -> None:
        """See ``Fetching``. Who waits here is cancelled by whoever closes the instance."""
        self._is_closed = True

    async def _take(
        self,
        ref: TransferRef,
        fetch: Fetch,
        block_size: int,
        on_arrived: Callable[[int], None] | None,
    ) -> bytes:
        link = self._fabric.link(ref.instance, self._instance)
        await asyncio.sleep(link.latency_s)
        giver = self._fabric.promises.get(ref.instance)
        if giver is None:
            raise InstanceLost(f"{ref.instance} is not there")
        woken = asyncio.Event()
        offer = await self._claim(giver, fetch, woken)
        verdict = Verdict(Release.TAKER_LOST, detail="its taker was lost")
        try:
            await self._carry(giver, offer, fetch, woken, (block_size, on_arrived))
            giver.offers.take(offer)
            verdict = Verdict(Release.TAKEN, detail="it was taken already")
        except Ended as ended:
            verdict = ended.verdict
            raise
        finally:
            giver.offers.settle(offer, verdict)
        self._told[ref.instance] = LinkReport(
            ref.instance,
            self._fabric.kind(ref.instance, self._instance),
            2 * link.latency_s,
            link.bytes_per_s,
            0,
        )
        return offer.tail or b""

    async def _claim(self, giver: Promises, fetch: Fetch, woken: asyncio.Event) -> Offer:
        wake = woken.set
        try:
            async with asyncio.timeout(self._config.lease_s):
                while (offer := giver.offers.claim(fetch, self._instance, wake)) is None:
                    await woken.wait()
                    woken.clear()
        except TimeoutError:
            raise Ended(Verdict(Release.EXPIRED, detail="nothing was offered in time")) from None
        finally:
            giver.offers.give_up(fetch, wake)
        return offer

    async def _carry(
        self,
        giver: Promises,
        offer: Offer,
        fetch: Fetch,
        woken: asyncio.Event,
        landing: tuple[int, Callable[[int], None] | None],
    ) -> None:
        """Have all that is wanted sent, message by message, as it is offered."""
        layout, loop = offer.memory.layout, asyncio.get_running_loop()
        first, end = fetch.first_token // layout.block_size, layout.num_blocks(fetch.end_token)
        wanted = (first, end) if fetch.first_token < fetch.end_token else (end, end)
        block_size, on_arrived = landing
        there_s, total_bytes = self._clock.now(), 0
        while True:
            woken.clear()
            ahead = giver.offers.look(offer, wanted, self._config.max_message_bytes, 1 << 62)
            if ahead.piece is None:
                if ahead.total is None:
                    await woken.wait()
                    continue
                if ahead.total < end:
                    detail = f"{end} blocks wanted, {ahead.total} made"
                    raise Ended(Verdict(Release.FAILED, detail=detail))
                break
            num_bytes = piece_bytes(layout, ahead.piece)
            total_bytes += num_bytes
            sent_s, there_s = self._fabric.carry(
                giver.instance, self._instance, num_bytes, self._clock.now()
            )
            if on_arrived is not None and ahead.piece.end_layer == layout.num_layers:
                arrived = ahead.piece.end_block * layout.block_size - fetch.first_token
                loop.call_at(there_s, on_arrived, arrived // block_size)
            await asyncio.sleep(sent_s - self._clock.now())
        await asyncio.sleep(max(0.0, there_s - self._clock.now()))
        await self._fabric.moved(giver.instance, self._instance, total_bytes)


def _place(instance: InstanceId) -> str:
    return instance.partition("@")[0]


async def _moved_by_itself(_giver: InstanceId, _taker: InstanceId, _num_bytes: int) -> None:
    """Nobody's processor is needed."""


def _ignore(_giver: InstanceId, _begin_s: float, _end_s: float, _num_bytes: int) -> None:
    """Nobody looks at the fabric."""
