"""How transfers end early: failures, withdrawals, leases, cancellation, deadlines, closing."""

import asyncio

import msgspec
import pytest

from tests.kvtransfer.stores import CALM, EVERYWHERE, pair
from tests.patience import PATIENCE_S
from triptych.core.errors import (
    Cancelled,
    DeadlineExceeded,
    Preempted,
    RequestError,
    TransferError,
    Unavailable,
)
from triptych.core.ids import Handle

pytestmark = pytest.mark.usefixtures("no_leak")


# -- failures that are announced


@pytest.mark.parametrize("way", EVERYWHERE)
@pytest.mark.parametrize("moment", ["before", "waiting", "open", "finished"])
async def test_the_producer_fails(way, moment):
    async with pair(way) as both:
        if moment == "before":
            both.outbox.refuse(Handle("h"), "invalid_request", "not a picture")
            with pytest.raises(RequestError, match="not a picture"):
                await both.fetch(1, [0])
            late = both.offer()
            late.append([1])
            await asyncio.sleep(0.05)
            assert both.released == {"h": ["withdrawn"]}
            return
        fetching = asyncio.create_task(both.fetch(2, [0, 1]))
        await asyncio.sleep(0.1)
        if moment == "waiting":
            both.outbox.refuse(Handle("h"), "preempted", "no room")
        else:
            offer = both.offer()
            offer.append([1])
            await asyncio.sleep(0.1)
            if moment == "finished":
                fetching.cancel()
                offer.fail("preempted", "no room")
                await asyncio.wait([fetching])
                await both.assert_idle()
                return
            offer.fail("preempted", "no room")
        with pytest.raises(Exception, match="no room") as caught:
            await fetching
        assert caught.value.code == "preempted"
        await both.assert_idle()


@pytest.mark.parametrize("way", EVERYWHERE)
async def test_withdrawing_returns_when_the_memory_is_free(way):
    async with pair(way) as both:
        both.offer("alone")
        await both.outbox.withdraw(Handle("alone"))
        assert both.released["alone"] == ["withdrawn"]
        with pytest.raises(Cancelled):
            await both.fetch(1, [0], handle="alone")
        both.offer("open").append([1])
        fetching = asyncio.create_task(both.fetch(2, [0, 1], handle="open"))
        await asyncio.sleep(0.1)
        await both.outbox.withdraw(Handle("open"))
        assert both.released["open"] == ["withdrawn"]
        with pytest.raises(Cancelled):
            await fetching
        await both.outbox.withdraw(Handle("open"))
        await both.outbox.withdraw(Handle("never offered"))
        with pytest.raises(Cancelled):
            await both.fetch(1, [0], handle="never offered")
        await both.assert_idle()
        assert both.released == {"alone": ["withdrawn"], "open": ["withdrawn"]}


async def test_what_the_producer_says_after_the_release_changes_nothing():
    async with pair() as both:
        offer = both.offer()
        await both.outbox.withdraw(Handle("h"))
        offer.append([1])
        offer.finish()
        offer.fail("internal", "late")
        await asyncio.sleep(0.05)
        assert both.released == {"h": ["withdrawn"]}


# -- leases


async def test_a_lease_ends_when_nobody_comes_but_not_before_the_offer_is_complete():
    config = msgspec.structs.replace(CALM, lease_s=0.3)
    async with pair(config=config) as both:
        slow, done = both.offer("slow"), both.offer("done")
        slow.append([1])
        done.append([2])
        done.finish()
        async with asyncio.timeout(PATIENCE_S):
            while both.released["done"] != ["expired"]:
                await asyncio.sleep(0.01)
        assert both.released["slow"] == []
        with pytest.raises(Preempted, match="in time"):  # its taker queued too long: try again
            await both.fetch(1, [0], handle="done")


async def test_no_timer_ends_a_lease_while_its_taker_is_connected():
    config = msgspec.structs.replace(CALM, lease_s=0.2)
    async with pair(config=config) as both:
        offer = both.offer()
        offer.append([1])
        fetching = asyncio.create_task(both.fetch(2, [0, 1]))
        await asyncio.sleep(0.8)
        assert both.released == {"h": []}
        offer.append([2])
        offer.finish()
        await fetching
        both.assert_equal([1, 2], [0, 1])


async def test_a_fetch_of_what_is_never_offered_ends():
    config = msgspec.structs.replace(CALM, lease_s=0.3)
    async with pair(config=config) as both:
        with pytest.raises(TransferError, match="in time"):
            await both.fetch(1, [0])
        await both.assert_idle()


# -- the end of the taker


@pytest.mark.parametrize("way", EVERYWHERE)
@pytest.mark.parametrize("moment", ["waiting", "open"])
async def test_cancelling_a_fetch_frees_both_sides_at_once(way, moment):
    async with pair(way) as both:
        offer = both.offer() if moment == "open" else None
        if offer is not None:
            offer.append([1, 2])
        fetching = asyncio.create_task(both.fetch(3, [0, 1, 2]))
        await asyncio.sleep(0.1)
        fetching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetching
        await both.assert_idle()
        if offer is not None:
            assert both.released == {"h": ["taker_lost"]}


@pytest.mark.parametrize("way", EVERYWHERE)
async def test_a_deadline_ends_a_fetch(way):
    async with pair(way) as both:
        both.offer()
        with pytest.raises(DeadlineExceeded):
            await both.fetch(1, [0], limit_s=0.2)
        with pytest.raises(DeadlineExceeded):
            await both.fetch(1, [0], handle="other", limit_s=0.2)
        await both.assert_idle()


async def test_closing_the_receiver_ends_its_fetches():
    async with pair() as both:
        fetching = asyncio.create_task(both.fetch(1, [0]))
        await asyncio.sleep(0.1)
        await both.receiver.close()
        with pytest.raises(Cancelled):
            await fetching
        with pytest.raises(Cancelled):
            await both.fetch(1, [0])


@pytest.mark.parametrize("way", EVERYWHERE)
async def test_closing_the_outbox_ends_everything(way):
    async with pair(way) as both:
        both.offer("lonely")
        both.offer("open").append([1])
        takers = [
            asyncio.create_task(both.fetch(2, [0, 1], handle="open")),
            asyncio.create_task(both.fetch(2, [2, 3], handle="waiting")),
        ]
        await asyncio.sleep(0.15)
        await both.outbox.close()
        for taker in takers:
            with pytest.raises(Unavailable):
                await taker
        assert both.released == {"lonely": ["withdrawn"], "open": ["withdrawn"]}
        assert both.outbox.census() == []


async def test_idle_or_dead_peers_do_not_pile_up():
    async with pair("tcp") as both:
        for number in range(20):
            with pytest.raises(Cancelled):
                await both.outbox.withdraw(Handle(f"h{number}"))
                await both.fetch(1, [0], handle=f"h{number}")
        assert both.receiver._idle == []


async def test_idle_means_that_the_owner_was_told():
    """The census forgets a lease in the turn in which its owner hears of it, neither before nor
    behind."""
    async with pair("shm") as both:
        both.offer().fail("data_loss", "the producer broke")
        assert [holding.kind for holding in both.outbox.census()] == ["lease"]
        assert both.released == {"h": []}, "the loop had no turn yet"
        await asyncio.sleep(0)
        assert both.outbox.census() == []
        assert both.released == {"h": ["failed"]}
